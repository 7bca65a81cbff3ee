// Memory the devices know: an address allocator, the table of live ranges, and what kernels may touch.
//
// All device memory lies in one arena of address space, reserved once. A page is committed when first handed
// out and stays mapped: what is freed is emptied (it reads zero), never unmapped, so a program that uses
// freed memory gets wrong numbers or a fault of its launch, not the death of the process.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <vector>

#include "hostd/softgpu/api/context.hpp"
#include "hostd/softgpu/api/shared_file.hpp"
#include "hostd/softgpu/engine/engine.hpp"

namespace gpupool::softgpu {

inline constexpr u64 kSmallAlignment = 512;
inline constexpr u64 kLargeAlignment = 2u << 20;
inline constexpr u64 kLargeBytes = 1u << 20;  // from here on an allocation gets 2 MiB alignment
inline constexpr u64 kPoolStep = 32u << 20;   // pools and graphs hold memory in multiples of it
inline constexpr u64 kPageBytes = 4096;

constexpr u64 round_up(u64 value, u64 to) {
  return (value + to - 1) / to * to;
}

enum class MemoryKind : u8 { device, pooled, mapped, pinned, registered, global, graph, imported, graphics };

struct Allocation {
  u64 base = 0;
  u64 size = 0;      // as asked for
  u64 reserved = 0;  // address space taken
  MemoryKind kind = MemoryKind::device;
  int device = 0;  // ordinal
  CUcontext context = nullptr;
  u64 context_id = 0;
  u32 flags = 0;           // CU_MEMHOSTALLOC_* or CU_MEMHOSTREGISTER_*
  u64 id = 0;              // CU_POINTER_ATTRIBUTE_BUFFER_ID
  bool accessible = true;  // kernels may touch it
  u64 pool = 0;            // CUmemoryPool handle of pooled memory
  bool freeing = false;    // a stream-ordered free is queued
  u64 mapping_handle = 0;  // CUmemGenericAllocationHandle of mapped memory
  u64 mapping = 0;         // another process's memory: where the whole of its file is mapped here
  u64 mapping_bytes = 0;
  std::shared_ptr<std::atomic<bool>> sync_memops;

  bool host() const { return kind == MemoryKind::pinned || kind == MemoryKind::registered; }
  u64 end() const { return base + size; }
};

struct Range {
  u64 begin = 0, end = 0;
};

class MemoryTable {
 public:
  // False when the range overlaps a live one.
  bool insert(Allocation allocation);
  std::optional<Allocation> find(u64 address) const;
  // The allocation that starts at `base`, removed.
  std::optional<Allocation> take(u64 base);
  // Changes whether kernels may touch the allocation at `base`.
  bool set_accessible(u64 base, bool accessible);
  // Notes that a free of the pooled allocation at `base` is queued. False when there is none, or one already.
  bool begin_free(u64 base);
  // True when every byte of [address, +bytes) lies in live, accessible memory.
  bool covers(u64 address, u64 bytes) const;
  // True when some byte of the range is in the table.
  bool touches(u64 address, u64 bytes) const;
  // What kernels may touch now, sorted. Shared until the table changes.
  std::shared_ptr<const std::vector<Range>> snapshot() const;
  std::vector<Allocation> of_context(u64 context_id) const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<u64, Allocation> live_;
  mutable std::shared_ptr<const std::vector<Range>> snapshot_;
  u64 next_id_ = 1;
};

MemoryTable& memory_table();

// What one launch may touch: a snapshot, and the table itself for what is not in it.
class LaunchMemory final : public MemoryMap {
 public:
  LaunchMemory() : ranges_(memory_table().snapshot()) {}
  bool range_of(u64 address, u64& begin, u64& end) override;

 private:
  std::shared_ptr<const std::vector<Range>> ranges_;
};

// Address space for device memory. Thread-safe.
class Arena {
 public:
  // Zeroed memory at an address that is free, or 0 when the address space is used up.
  u64 allocate(u64 bytes, u64 alignment);
  // Empties and frees what allocate() gave.
  void release(u64 address, u64 bytes);
  // Moves the memory of an allocation into a file that other processes can map, where it is not in one
  // already. Nothing may use it meanwhile. Small allocations share the file of their whole block.
  std::shared_ptr<SharedFile> share(u64 address, u64 bytes, u64& offset);

 private:
  bool reserve();
  void unshare(std::map<u64, std::shared_ptr<SharedFile>>::iterator shared);
  static u64 take(std::map<u64, u64>& free, u64 bytes, u64 alignment, u64 within);
  static void give(std::map<u64, u64>& free, u64 address, u64 bytes);

  std::mutex mutex_;
  u64 begin_ = 0, end_ = 0, committed_ = 0;
  std::map<u64, u64> large_;  // free ranges: begin to size
  std::map<u64, u64> small_;  // free ranges within blocks that hold small allocations
  std::map<u64, std::shared_ptr<SharedFile>> shared_;  // by the address they are mapped at
};

Arena& arena();

// Allocates device memory and enters it in the table; charges the device. Error OUT_OF_MEMORY.
Allocation allocate_device(Context& context, u64 bytes, MemoryKind kind, u64 pool = 0);
// Undoes it. The caller has taken the allocation from the table.
void release_device(const Allocation& allocation);

// A handle with which other processes can open the memory.
SharedHandle share_memory(const Allocation& allocation);
// Maps memory of another process and enters it in the table. Error INVALID_VALUE, INVALID_CONTEXT.
Allocation open_shared_memory(const SharedHandle& handle, Context& context, MemoryKind kind);

// Frees everything a context allocated.
void free_context_memory(Context& context);
// Takes an allocation that cuMemFree releases off its pool's account; nothing for memory of no pool
// (pool.cpp).
void forget_pooled(const Allocation& allocation);
// The host has waited: what was freed until now may leave the pools.
void see_frees();

// Error INVALID_VALUE unless the whole range is memory that the device knows.
void require_device_range(u64 address, u64 bytes);

}  // namespace gpupool::softgpu
