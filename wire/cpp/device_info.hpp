// What the worker tells the client about each vGPU once, so that device queries never need a message.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kMaxDevices = 16;
inline constexpr u32 kDeviceAttributes = 192;        // CUdevice_attribute values 0..191
inline constexpr i32 kAttributeUnknown = INT32_MIN;  // the host's driver answered INVALID_VALUE

struct DeviceInfo {
  char name[256];
  u8 uuid[16];
  char pci_bus_id[16];  // "0000:04:00.0"
  u64 total_memory_bytes;
  i32 attributes[kDeviceAttributes];
  i32 least_stream_priority;
  i32 greatest_stream_priority;
  u64 limits[16];  // CUlimit -> value in the primary context; ~0 where unknown
  i32 properties_reserved[8];
};

}  // namespace gpupool::wire
