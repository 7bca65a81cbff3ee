// Memory without an address: what cuMemCreate makes and cuMemMap gives an address to.
#pragma once

#include <memory>
#include <vector>

#include "hostd/softgpu/api/device.hpp"
#include "hostd/softgpu/api/registry.hpp"

namespace gpupool::softgpu {

inline constexpr u64 kGranularity = 2u << 20;

struct Extent {
  u64 offset = 0, size = 0;
};

// Lies in a file in memory, so that it can be mapped anywhere and more than once: pieces of the device's own
// file, or a file of its own when other processes are to import it.
struct Physical {
  CUmemGenericAllocationHandle handle = 0;
  Device* device = nullptr;
  u64 size = 0;
  CUmemAllocationProp properties{};
  u32 references = 1;  // of the handle; guarded by the vmm lock
  int file = -1;
  bool own_file = false;
  bool charged = false;  // imported memory is charged where it was made
  std::vector<Extent> extents;

  Physical() = default;
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;
  ~Physical();  // empties and gives back

  // Maps [offset, +bytes) of it over `address`. False when the system refuses.
  bool map(u64 address, u64 offset, u64 bytes) const;
};

// Error OUT_OF_MEMORY.
std::shared_ptr<Physical> make_physical(Device& device, u64 size, bool exportable);
// From a file that another process exported. Error INVALID_VALUE when it is not one of ours.
std::shared_ptr<Physical> import_physical(int file);

}  // namespace gpupool::softgpu
