// The address space that device memory comes from.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

namespace {

// Above what a forwarding client proposes for its own placements (0x3000'0000'0000 upwards), below where
// Linux puts libraries; so neither our addresses nor its collide with anything in the other process.
constexpr u64 kArenaHint = 0x3800'0000'0000;
constexpr u64 kArenaStep = 0x0080'0000'0000;
constexpr u32 kArenaTries = 16;
constexpr u64 kArenaBytes = 1ull << 40;
constexpr u64 kSmallestArenaBytes = 1ull << 34;

// Makes [address, +bytes) read zero again. Whole pages go back to the system.
void empty(u64 address, u64 bytes) {
  const u64 first = round_up(address, kPageBytes), last = (address + bytes) / kPageBytes * kPageBytes;
  if (first >= last) {
    std::memset(reinterpret_cast<void*>(address), 0, bytes);
    return;
  }
  std::memset(reinterpret_cast<void*>(address), 0, first - address);
  std::memset(reinterpret_cast<void*>(last), 0, address + bytes - last);
  if (madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) != 0)
    std::memset(reinterpret_cast<void*>(first), 0, last - first);
}

}  // namespace

Arena& arena() {
  static auto* only = new Arena;
  return *only;
}

bool Arena::reserve() {
  for (u64 bytes = kArenaBytes; bytes >= kSmallestArenaBytes; bytes /= 4)
    for (u32 i = 0; i < kArenaTries; ++i) {
      void* hint = reinterpret_cast<void*>(kArenaHint + i * kArenaStep);
      void* got = mmap(hint, bytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
      if (got == MAP_FAILED) continue;
      if (got != hint) {  // a kernel before 4.17 ignores the flag
        munmap(got, bytes);
        continue;
      }
      begin_ = committed_ = reinterpret_cast<u64>(got);
      end_ = begin_ + bytes;
      large_[begin_] = bytes;
      return true;
    }
  return false;
}

// Cuts a piece out of the first free range it fits in; 0 when there is none.
u64 Arena::take(std::map<u64, u64>& free, u64 bytes, u64 alignment) {
  for (auto range = free.begin(); range != free.end(); ++range) {
    const u64 begin = range->first, end = begin + range->second;
    const u64 at = round_up(begin, alignment);
    if (at >= end || end - at < bytes) continue;
    free.erase(range);
    if (at > begin) free[begin] = at - begin;
    if (at + bytes < end) free[at + bytes] = end - at - bytes;
    return at;
  }
  return 0;
}

void Arena::give(std::map<u64, u64>& free, u64 address, u64 bytes) {
  auto next = free.lower_bound(address);
  if (next != free.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == address) {
      address = before->first;
      bytes += before->second;
      free.erase(before);
    }
  }
  if (next != free.end() && next->first == address + bytes) {
    bytes += next->second;
    free.erase(next);
  }
  free[address] = bytes;
}

u64 Arena::allocate(u64 bytes, u64 alignment) {
  const std::lock_guard lock(mutex_);
  if (begin_ == 0 && !reserve()) return 0;
  const bool small = bytes < kLargeBytes;
  if (small)
    if (const u64 address = take(small_, bytes, alignment); address != 0) return address;
  const u64 whole = round_up(bytes, kLargeAlignment);
  const u64 address = take(large_, whole, std::max(alignment, kLargeAlignment));
  if (address == 0) return 0;
  if (address + whole > committed_) {
    if (mprotect(reinterpret_cast<void*>(committed_), address + whole - committed_, PROT_READ | PROT_WRITE) !=
        0) {
      give(large_, address, whole);
      return 0;
    }
    committed_ = address + whole;
  }
  if (small && whole > bytes) give(small_, address + bytes, whole - bytes);
  return address;
}

void Arena::release(u64 address, u64 bytes) {
  const bool small = bytes < kLargeBytes;
  const u64 whole = small ? bytes : round_up(bytes, kLargeAlignment);
  empty(address, whole);
  const std::lock_guard lock(mutex_);
  if (!small) {
    give(large_, address, whole);
    return;
  }
  give(small_, address, bytes);
  // Blocks of which nothing is used any more can serve large allocations again.
  auto range = std::prev(small_.upper_bound(address));
  const u64 begin = range->first, end = begin + range->second;
  const u64 first = round_up(begin, kLargeAlignment), last = end / kLargeAlignment * kLargeAlignment;
  if (first >= last) return;
  small_.erase(range);
  if (first > begin) small_[begin] = first - begin;
  if (last < end) small_[last] = end - last;
  give(large_, first, last - first);
}

}  // namespace gpupool::softgpu
