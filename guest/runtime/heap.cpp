#include "guest/runtime/heap.hpp"

#include <sys/mman.h>

#include "guest/runtime/message.hpp"

namespace gpupool::guest {
namespace {

constexpr u64 kPage = 4096;
constexpr u64 kSegmentUnit = 2u << 20;    // segments are whole huge pages
constexpr u64 kSmallSegment = 16u << 20;  // shared by small allocations
constexpr u64 kKeepIdle = 256u << 20;     // empty segments kept: registering again costs milliseconds

u64 round_up(u64 value, u64 unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

void RangeSet::add(u64 offset, u64 size) {
  auto next = ranges_.lower_bound(offset);
  if (next != ranges_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      offset = before->first;
      size += before->second;
      ranges_.erase(before);
    }
  }
  if (next != ranges_.end() && offset + size == next->first) {
    size += next->second;
    ranges_.erase(next);
  }
  ranges_[offset] = size;
}

u64 RangeSet::take(u64 size, u64 alignment) {
  for (auto range = ranges_.begin(); range != ranges_.end(); ++range) {
    const auto [begin, have] = *range;
    const u64 offset = round_up(begin, alignment);
    const u64 skipped = offset - begin;
    if (have < skipped || have - skipped < size) continue;
    ranges_.erase(range);
    if (skipped != 0) ranges_[begin] = skipped;
    if (have - skipped > size) ranges_[offset + size] = have - skipped - size;
    return offset;
  }
  return 0;
}

bool RangeSet::covers(u64 offset, u64 size) const {
  const auto range = ranges_.find(offset);
  return range != ranges_.end() && range->second == size;
}

Heap::Heap(const wire::Window& window) : window_(window) {
  free_.add(wire::kHeapOffset, window.size - wire::kHeapOffset);
}

Bulk Heap::allocate(u64 bytes, bool registered, CUresult& error) {
  error = CUDA_SUCCESS;
  const u64 size = round_up(bytes == 0 ? 1 : bytes, kPage);
  if (size > window_.size) {  // also keeps the arithmetic below from wrapping
    error = CUDA_ERROR_OUT_OF_MEMORY;
    return {};
  }
  const std::lock_guard lock(mutex_);
  if (!registered) {
    const u64 offset = free_.take(size);
    if (offset == 0) {
      error = CUDA_ERROR_OUT_OF_MEMORY;
      return {};
    }
    return Bulk{offset, size, window_.base + offset};
  }
  Bulk bulk = carve(size);
  if (!bulk) {
    error = add_segment(size);
    if (error == CUDA_SUCCESS) bulk = carve(size);
  }
  return bulk;
}

Bulk Heap::carve(u64 bytes) {
  for (auto& [start, segment] : segments_) {
    const u64 offset = segment.free.take(bytes);
    if (offset == 0) continue;
    if (segment.used == 0) idle_bytes_ -= segment.size;
    segment.used += bytes;
    pinned_[offset] = bytes;
    return Bulk{offset, bytes, window_.base + offset};
  }
  return {};
}

CUresult Heap::add_segment(u64 bytes) {
  const u64 size = round_up(bytes < kSmallSegment ? kSmallSegment : bytes, kSegmentUnit);
  // Whole huge pages of the window, so that the kernel may use some (hostd/worker/populate.hpp).
  u64 offset = free_.take(size, kSegmentUnit);
  if (offset == 0) offset = free_.take(size);
  if (offset == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  Call call(wire::Function::window_register);
  call.put(offset);
  call.put(size);
  const CUresult result = call.wait();
  if (result != CUDA_SUCCESS) {
    free_.add(offset, size);
    return result;
  }
  Segment& segment = segments_[offset];
  segment.size = size;
  segment.free.add(offset, size);
  idle_bytes_ += size;
  return CUDA_SUCCESS;
}

void Heap::free(const Bulk& bulk) {
  const std::lock_guard lock(mutex_);
  const auto pinned = pinned_.find(bulk.offset);
  if (pinned == pinned_.end()) {
    // Gives the pages back to the system; the range reads as zero when it is used again.
    if (bulk.size >= kSegmentUnit) madvise(bulk.address, bulk.size, MADV_REMOVE);
    free_.add(bulk.offset, round_up(bulk.size, kPage));
    return;
  }
  auto segment = std::prev(segments_.upper_bound(bulk.offset));
  segment->second.free.add(bulk.offset, pinned->second);
  segment->second.used -= pinned->second;
  pinned_.erase(pinned);
  if (segment->second.used != 0) return;
  idle_bytes_ += segment->second.size;
  if (idle_bytes_ > kKeepIdle) drop_segment(segment);
}

void Heap::drop_segment(std::map<u64, Segment>::iterator segment) {
  const u64 offset = segment->first;
  const u64 size = segment->second.size;
  Call call(wire::Function::window_unregister);
  call.put(offset);
  if (call.wait() != CUDA_SUCCESS) return;  // keep it: it is still registered
  idle_bytes_ -= size;
  segments_.erase(segment);
  madvise(window_.base + offset, size, MADV_REMOVE);
  free_.add(offset, size);
}

u64 Heap::pinned_offset(const void* address, u64 bytes) {
  const u64 offset = reinterpret_cast<u64>(address) - reinterpret_cast<u64>(window_.base);
  if (offset < wire::kHeapOffset || offset >= window_.size) return 0;
  const std::lock_guard lock(mutex_);
  auto allocation = pinned_.upper_bound(offset);
  if (allocation == pinned_.begin()) return 0;
  --allocation;
  const u64 skip = offset - allocation->first;
  return skip < allocation->second && bytes <= allocation->second - skip ? offset : 0;
}

}  // namespace gpupool::guest
