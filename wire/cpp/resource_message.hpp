// Device resources (CUdevResource) on the wire. The driver's structure has a part that only the driver reads;
// the worker keeps the structure and hands out its number, so that nothing a client writes there reaches the
// driver.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kResourceExternalBytes = 48;  // RESOURCE_ABI_EXTERNAL_BYTES of cuda.h
inline constexpr u32 kMaxResources = 4096;         // in one message

struct ResourceInfo {
  u64 number = 0;  // from 1; 0 is none
  u32 type = 0;    // CUdevResourceType
  u32 reserved = 0;
  u8 external[kResourceExternalBytes] = {};  // what the program may read
};
static_assert(sizeof(ResourceInfo) == 64);

}  // namespace gpupool::wire
