#include "guest/runtime/manual/address_space.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <iterator>

#include "guest/runtime/log.hpp"

namespace gpupool::guest {
namespace {

constexpr u64 kPage = 4096;

// Stream-ordered pools begin here in every process (measured on driver 580); one TiB of it is kept free.
constexpr u64 kPoolsBegin = 0x3'0200'0000;
constexpr u64 kPoolsBytes = 1ull << 40;

// PROT_NONE memory at exactly [begin, end), or false. Kernels before 4.17 ignore MAP_FIXED_NOREPLACE and may
// map elsewhere, so the address is checked.
bool map_nothing(u64 begin, u64 end) {
#ifndef MAP_FIXED_NOREPLACE
  constexpr int MAP_FIXED_NOREPLACE = 0x100000;
#endif
  void* const wanted = reinterpret_cast<void*>(begin);
  void* const got = mmap(wanted, end - begin, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got == wanted) return true;
  if (got != MAP_FAILED) munmap(got, end - begin);
  return false;
}

}  // namespace

const Allocation* AddressSpace::locate(u64 address) const {
  auto next = allocations_.upper_bound(address);
  if (next == allocations_.begin()) return nullptr;
  const Allocation& candidate = std::prev(next)->second;
  return address - candidate.address < candidate.size ? &candidate : nullptr;
}

bool AddressSpace::insert(Allocation allocation) {
  if (allocation.size == 0 || allocation.address + allocation.size < allocation.address) return false;
  const std::unique_lock lock(mutex_);
  forget_graph_memory(allocation.address, allocation.end());
  const auto next = allocations_.lower_bound(allocation.address);
  if (next != allocations_.end() && next->first < allocation.end()) return false;
  if (locate(allocation.address) != nullptr) return false;
  allocation.id = next_id_++;
  allocations_.emplace_hint(next, allocation.address, allocation);
  return true;
}

void AddressSpace::forget_graph_memory(u64 begin, u64 end) {
  auto at = allocations_.upper_bound(begin);
  if (at != allocations_.begin()) --at;
  while (at != allocations_.end() && at->first < end) {
    const bool lent = at->second.kind == MemoryKind::graph || at->second.kind == MemoryKind::graphics;
    const bool gone = lent && at->second.end() > begin;
    at = gone ? allocations_.erase(at) : std::next(at);
  }
}

void AddressSpace::lend(u64 address) {
  const std::unique_lock lock(mutex_);
  const auto found = allocations_.find(address);
  if (found != allocations_.end() && !found->second.on_host() && found->second.kind != MemoryKind::managed)
    found->second.kind = MemoryKind::graph;
}

std::optional<Allocation> AddressSpace::find(u64 address) const {
  const std::shared_lock lock(mutex_);
  const Allocation* found = locate(address);
  return found == nullptr ? std::nullopt : std::optional(*found);
}

std::optional<Allocation> AddressSpace::take(u64 address, std::initializer_list<MemoryKind> kinds) {
  const std::unique_lock lock(mutex_);
  const auto found = allocations_.find(address);
  if (found == allocations_.end()) return std::nullopt;
  for (const MemoryKind kind : kinds) {
    if (found->second.kind != kind) continue;
    const Allocation allocation = found->second;
    allocations_.erase(found);
    return allocation;
  }
  return std::nullopt;
}

bool AddressSpace::take_mapped(u64 address, u64 size) {
  const std::unique_lock lock(mutex_);
  const auto first = allocations_.find(address);
  auto last = first;
  u64 at = address;
  while (last != allocations_.end() && last->first < address + size) {
    // Gaps are allowed, as in the driver; a mapping that the range would cut is not.
    if (last->second.kind != MemoryKind::mapped || last->second.end() > address + size) return false;
    at = last->second.end();
    ++last;
  }
  if (first == allocations_.end() || at == address) return false;
  allocations_.erase(first, last);
  return true;
}

AddressSpace::Cover AddressSpace::cover(u64 address, u64 bytes) const {
  const std::shared_lock lock(mutex_);
  const Allocation* found = locate(address);
  if (found == nullptr || found->kind == MemoryKind::registered) return Cover::unknown;
  u64 left = bytes;
  u64 at = address;
  while (true) {
    const u64 here = found->end() - at;
    if (left <= here) return Cover::whole;
    left -= here;
    at += here;
    found = locate(at);
    if (found == nullptr) return Cover::partly;
  }
}

bool AddressSpace::is_device(u64 address) const {
  if (const std::optional<Allocation> found = find(address)) return !found->on_host();
  const std::lock_guard lock(kept_mutex_);
  const auto next = kept_.upper_bound(address);
  return next != kept_.begin() && std::prev(next)->second > address;
}

void AddressSpace::set_sync_memops(u64 address, bool value) {
  const std::unique_lock lock(mutex_);
  // locate() gives a const view; the entry it found is keyed by its address.
  if (const Allocation* found = locate(address); found != nullptr)
    allocations_.at(found->address).sync_memops = value;
  if (value) any_sync_memops_.store(true, std::memory_order_release);
}

bool AddressSpace::empty(u64 address, u64 size) const {
  const std::shared_lock lock(mutex_);
  if (locate(address) != nullptr) return false;
  const auto next = allocations_.lower_bound(address);
  return next == allocations_.end() || next->first - address >= size;
}

void AddressSpace::set_access(u64 address, u64 size, int device, u32 access) {
  const std::unique_lock lock(mutex_);
  for (auto next = allocations_.lower_bound(address);
       next != allocations_.end() && next->first - address < size; ++next)
    if (next->second.kind == MemoryKind::mapped && next->second.device == device)
      next->second.access = access;
}

bool AddressSpace::synchronizes(u64 address) const {
  if (!any_sync_memops_.load(std::memory_order_acquire)) return false;
  const std::shared_lock lock(mutex_);
  const Allocation* found = locate(address);
  return found != nullptr && found->sync_memops;
}

std::vector<Allocation> AddressSpace::take_context(const Context* context) {
  std::vector<Allocation> taken;
  const std::unique_lock lock(mutex_);
  for (auto entry = allocations_.begin(); entry != allocations_.end();) {
    if (entry->second.context == context) {
      taken.push_back(entry->second);
      entry = allocations_.erase(entry);
    } else {
      ++entry;
    }
  }
  return taken;
}

void AddressSpace::add_reservation(const Reservation& reservation) {
  const std::unique_lock lock(mutex_);
  reservations_[reservation.address] = reservation;
}

std::optional<Reservation> AddressSpace::find_reservation(u64 address) const {
  const std::shared_lock lock(mutex_);
  auto next = reservations_.upper_bound(address);
  if (next == reservations_.begin()) return std::nullopt;
  const Reservation& candidate = std::prev(next)->second;
  return address - candidate.address < candidate.size ? std::optional(candidate) : std::nullopt;
}

bool AddressSpace::take_reservation(u64 address, u64 size) {
  const std::unique_lock lock(mutex_);
  const auto found = reservations_.find(address);
  if (found == reservations_.end() || found->second.size != size) return false;
  const auto inside = allocations_.lower_bound(address);
  if (inside != allocations_.end() && inside->first < address + size) return false;
  reservations_.erase(found);
  return true;
}

bool AddressSpace::keep_free(u64 address, u64 size) {
  const std::lock_guard lock(kept_mutex_);
  if (!pools_kept_) {
    pools_kept_ = true;
    // When something lies in the way the pools' blocks are kept free one by one instead.
    if (map_nothing(kPoolsBegin, kPoolsBegin + kPoolsBytes)) kept_[kPoolsBegin] = kPoolsBegin + kPoolsBytes;
  }
  // Whole units spare system calls; where the program's mappings are so near, the pages themselves will do.
  return keep_units(address, size, kAddressUnit) || keep_units(address, size, kPage);
}

bool AddressSpace::keep_units(u64 address, u64 size, u64 unit) {
  const u64 begin = address / unit * unit;
  const u64 end = (address + size + unit - 1) / unit * unit;
  u64 at = begin;
  std::vector<std::pair<u64, u64>> fresh;
  while (at < end) {
    auto next = kept_.upper_bound(at);
    if (next != kept_.begin() && std::prev(next)->second > at) {
      at = std::prev(next)->second;
      continue;
    }
    const u64 stop = next != kept_.end() && next->first < end ? next->first : end;
    if (!map_nothing(at, stop)) {
      for (const auto& [from, to] : fresh) {
        munmap(reinterpret_cast<void*>(from), to - from);
        kept_.erase(from);
      }
      return false;
    }
    kept_[at] = stop;
    fresh.emplace_back(at, stop);
    at = stop;
  }
  return true;
}

void AddressSpace::forget(u64 address, u64 size) {
  const std::lock_guard lock(kept_mutex_);
  const auto found = kept_.find(address);
  if (found == kept_.end() || found->second != address + size) return;  // part of a larger range: stays kept
  munmap(reinterpret_cast<void*>(address), size);
  kept_.erase(found);
}

AddressSpace& address_space() {
  static auto* space = new AddressSpace();
  return *space;
}

bool adopt_device_memory(const Allocation& allocation) {
  AddressSpace& space = address_space();
  if (!space.keep_free(allocation.address, allocation.size)) return false;
  if (space.insert(allocation)) return true;
  log_line("the worker answered with device memory at 0x%llx that overlaps memory already handed out",
           static_cast<unsigned long long>(allocation.address));
  return false;
}

}  // namespace gpupool::guest
