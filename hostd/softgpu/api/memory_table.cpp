// The table of live memory: what is where, and what kernels may touch.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

MemoryTable& memory_table() {
  static auto* table = new MemoryTable;
  return *table;
}

bool MemoryTable::insert(Allocation allocation) {
  const std::unique_lock lock(mutex_);
  const auto next = live_.lower_bound(allocation.base);
  if (next != live_.end() && next->second.base < allocation.end()) return false;
  if (next != live_.begin() && std::prev(next)->second.end() > allocation.base) return false;
  allocation.id = next_id_++;
  allocation.sync_memops = std::make_shared<std::atomic<bool>>(false);
  live_.emplace(allocation.base, std::move(allocation));
  snapshot_ = nullptr;
  return true;
}

std::optional<Allocation> MemoryTable::find(u64 address) const {
  const std::shared_lock lock(mutex_);
  auto next = live_.upper_bound(address);
  if (next == live_.begin()) return std::nullopt;
  const Allocation& candidate = std::prev(next)->second;
  if (address >= candidate.end()) return std::nullopt;
  return candidate;
}

std::optional<Allocation> MemoryTable::take(u64 base) {
  const std::unique_lock lock(mutex_);
  const auto found = live_.find(base);
  if (found == live_.end()) return std::nullopt;
  Allocation allocation = std::move(found->second);
  live_.erase(found);
  snapshot_ = nullptr;
  return allocation;
}

bool MemoryTable::set_accessible(u64 base, bool accessible) {
  const std::unique_lock lock(mutex_);
  const auto found = live_.find(base);
  if (found == live_.end()) return false;
  found->second.accessible = accessible;
  snapshot_ = nullptr;
  return true;
}

bool MemoryTable::begin_free(u64 base) {
  const std::unique_lock lock(mutex_);
  const auto found = live_.find(base);
  if (found == live_.end() || found->second.kind != MemoryKind::pooled || found->second.freeing) return false;
  return found->second.freeing = true;
}

bool MemoryTable::covers(u64 address, u64 bytes) const {
  if (bytes == 0) return true;
  if (address + bytes < address) return false;
  const std::shared_lock lock(mutex_);
  auto next = live_.upper_bound(address);
  if (next == live_.begin()) return false;
  auto at = std::prev(next);
  for (u64 covered = address;;) {  // mappings side by side may be crossed
    if (at == live_.end() || !at->second.accessible || at->second.base > covered ||
        at->second.end() <= covered)
      return false;
    covered = at->second.end();
    if (covered >= address + bytes) return true;
    ++at;
  }
}

bool MemoryTable::touches(u64 address, u64 bytes) const {
  const std::shared_lock lock(mutex_);
  const auto next = live_.lower_bound(address);
  if (next != live_.end() && next->second.base < address + bytes) return true;
  return next != live_.begin() && std::prev(next)->second.end() > address;
}

std::shared_ptr<const std::vector<Range>> MemoryTable::snapshot() const {
  {
    const std::shared_lock lock(mutex_);
    if (snapshot_) return snapshot_;
  }
  const std::unique_lock lock(mutex_);
  if (snapshot_) return snapshot_;
  auto ranges = std::make_shared<std::vector<Range>>();
  ranges->reserve(live_.size());
  for (const auto& [base, allocation] : live_) {
    if (!allocation.accessible) continue;
    const bool joins =
        allocation.kind == MemoryKind::mapped && !ranges->empty() && ranges->back().end == base;
    if (joins)
      ranges->back().end = allocation.end();  // one mapping continues another: accesses may cross
    else
      ranges->push_back({base, allocation.end()});
  }
  snapshot_ = std::move(ranges);
  return snapshot_;
}

std::vector<Allocation> MemoryTable::of_context(u64 context_id) const {
  std::vector<Allocation> result;
  const std::shared_lock lock(mutex_);
  for (const auto& [base, allocation] : live_)
    if (allocation.context_id == context_id) result.push_back(allocation);
  return result;
}

bool LaunchMemory::range_of(u64 address, u64& begin, u64& end) {
  const auto after = std::upper_bound(ranges_->begin(), ranges_->end(), address,
                                      [](u64 value, const Range& range) { return value < range.begin; });
  if (after != ranges_->begin()) {
    const Range& range = *std::prev(after);
    if (address < range.end) {
      begin = range.begin;
      end = range.end;
      return true;
    }
  }
  // Made since the launch began, or not there at all: rare, so the table itself is asked.
  const std::optional<Allocation> found = memory_table().find(address);
  if (!found || !found->accessible) return false;
  begin = found->base;
  end = found->end();
  return true;
}

Allocation allocate_device(Context& context, u64 bytes, MemoryKind kind, u64 pool) {
  require(bytes != 0);
  require(bytes <= context.device->memory_bytes, CUDA_ERROR_OUT_OF_MEMORY);
  const u64 reserved = round_up(bytes, kSmallAlignment);
  require(context.device->charge(reserved), CUDA_ERROR_OUT_OF_MEMORY);
  const u64 address = arena().allocate(reserved, reserved < kLargeBytes ? kSmallAlignment : kLargeAlignment);
  if (address == 0) {
    context.device->release(reserved);
    fail(CUDA_ERROR_OUT_OF_MEMORY);
  }
  if (leftover_byte() != 0) std::memset(reinterpret_cast<void*>(address), leftover_byte(), reserved);
  Allocation allocation;
  allocation.base = address;
  allocation.size = bytes;
  allocation.reserved = reserved;
  allocation.kind = kind;
  allocation.device = context.device->ordinal;
  allocation.context = context.handle;
  allocation.context_id = context.id;
  allocation.pool = pool;
  memory_table().insert(allocation);
  return allocation;
}

void release_device(const Allocation& allocation) {
  if (allocation.mapping != 0) {  // another process's: it is charged there
    munmap(reinterpret_cast<void*>(allocation.mapping), allocation.mapping_bytes);
    return;
  }
  arena().release(allocation.base, allocation.reserved);
  device_of(allocation.device).release(allocation.reserved);
}

void require_device_range(u64 address, u64 bytes) {
  require(memory_table().covers(address, bytes));
}

}  // namespace gpupool::softgpu
