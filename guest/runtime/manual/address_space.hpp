// What the client knows about device addresses and pinned memory: which allocation an address lies in, so
// that pointer queries and the checks before a copy need no message; and which ranges of this process's
// address space are kept free because the worker's device memory has the same addresses.
//
// Invariant: an address is in the table from the moment the program may use it until the call that frees it
// has been made; the table never says more than the program could know.
#pragma once

#include <cuda.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <vector>

#include "guest/runtime/objects.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::guest {

inline constexpr u64 kAddressUnit =
    2u << 20;  // the driver's own granularity of device addresses (measured: driver 580)

enum class MemoryKind : u8 {
  device,          // cuMemAlloc, cuMemAllocPitch
  stream_ordered,  // cuMemAllocAsync, cuMemAllocFromPoolAsync
  mapped,          // one cuMemMap
  global,          // a module's variable
  graphics,        // a resource of OpenGL's, while it is mapped
  graph,           // a graph's node: there while a launch has allocated it, its address reserved by the graph
  imported,        // opened from another process's handle
  pinned,          // cuMemHostAlloc, cuMemAllocHost: window memory, one address on both sides
  registered,      // cuMemHostRegister: the program's own memory; copies are staged
  managed,         // cuMemAllocManaged: window memory as well, which the program counts as a device's
};

struct Allocation {
  u64 address = 0;
  u64 size = 0;
  MemoryKind kind = MemoryKind::device;
  Context* context =
      nullptr;  // where it was made; null for memory that belongs to a device, not to a context
  int device = 0;
  u64 id = 0;            // CU_POINTER_ATTRIBUTE_BUFFER_ID; filled in by insert()
  u64 pool = 0;          // wire handle of its memory pool, for stream_ordered
  u64 block = 0;         // mapped: wire handle of the physical memory; pinned, managed: offset in the window
  u64 host_map = 0;      // registered: where the worker has mapped it too, page by page; 0: nowhere
  u64 reserved = 0;      // pinned, managed: size of the piece of the window, at least `size`
  u32 flags = 0;         // CU_MEMHOSTALLOC_*, CU_MEMHOSTREGISTER_* or CU_MEM_ATTACH_*, by kind
  u64 handle_types = 0;  // CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES
  u32 access =
      CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE;  // from its device; mapped: none before cuMemSetAccess
  bool sync_memops = false;

  [[nodiscard]] bool on_host() const { return kind == MemoryKind::pinned || kind == MemoryKind::registered; }
  [[nodiscard]] u64 end() const { return address + size; }
};

// A range from cuMemAddressReserve.
struct Reservation {
  u64 address = 0;
  u64 size = 0;
};

class AddressSpace {
 public:
  // Adds an allocation; graph memory that it overlaps has gone and is forgotten. False when it overlaps one
  // that is known: then the worker has answered nonsense.
  bool insert(Allocation allocation);
  // Says that the driver may free the allocation that begins here without telling us, and then hand the
  // address out again: from now on it gives way to a new one.
  void lend(u64 address);
  // The allocation that contains this address.
  std::optional<Allocation> find(u64 address) const;
  // Removes the allocation that begins at this address, if it is of one of the kinds, and returns it.
  std::optional<Allocation> take(u64 address, std::initializer_list<MemoryKind> kinds);
  // Removes every mapped range inside [address, +size). False, with nothing removed, unless they fill it
  // exactly.
  bool take_mapped(u64 address, u64 size);
  // Whether known allocations cover [address, +bytes) without a gap.
  enum class Cover { unknown, partly, whole };
  Cover cover(u64 address, u64 bytes) const;
  // Whether the address is device memory, or at least lies where we keep room for it.
  bool is_device(u64 address) const;
  void set_sync_memops(u64 address, bool value);
  // Whether nothing is known inside [address, +size).
  bool empty(u64 address, u64 size) const;
  // What the device of mapped memory may do with it, for every mapping that begins in [address, +size).
  void set_access(u64 address, u64 size, int device, u32 access);
  // Whether synchronous operations on this address must wait although they need not
  // (CU_POINTER_ATTRIBUTE_SYNC_MEMOPS).
  bool synchronizes(u64 address) const;
  // Every allocation of a context that is going away, removed.
  std::vector<Allocation> take_context(const Context* context);

  void add_reservation(const Reservation& reservation);
  std::optional<Reservation> find_reservation(u64 address) const;
  // Removes the reservation of exactly this range. False when there is none or memory is still mapped in it.
  bool take_reservation(u64 address, u64 size);

  // Keeps [address, +size) of this process free of the program's own mappings, in units of 2 MiB, from now
  // on. False when the program has something mapped there already. What is kept stays kept until forget():
  // the driver hands the same addresses out again and again, and an unused reservation costs one line in
  // /proc/self/maps.
  bool keep_free(u64 address, u64 size);
  // Gives the range back; for address reservations, which share their units with nothing.
  void forget(u64 address, u64 size);

 private:
  const Allocation* locate(u64 address) const;
  void forget_graph_memory(u64 begin, u64 end);      // with mutex_ held
  bool keep_units(u64 address, u64 size, u64 unit);  // with kept_mutex_ held

  mutable std::shared_mutex mutex_;
  std::map<u64, Allocation> allocations_;
  std::map<u64, Reservation> reservations_;
  u64 next_id_ = 1;
  std::atomic<bool> any_sync_memops_{false};

  mutable std::mutex kept_mutex_;
  std::map<u64, u64> kept_;  // begin -> end of ranges we hold with PROT_NONE
  bool pools_kept_ = false;
};

// The table of this process. Never destroyed: programs free memory from their exit handlers.
AddressSpace& address_space();

// Adds device memory that the worker has just allocated: keeps its range free here and enters it. When the
// program occupies that range, returns false and enters nothing.
bool adopt_device_memory(const Allocation& allocation);

}  // namespace gpupool::guest
