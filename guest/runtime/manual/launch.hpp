// Kernel launches: what graphs need of them too.
#pragma once

#include <cuda.h>

#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/function.hpp"
#include "wire/cpp/launch_message.hpp"

namespace gpupool::guest {

// Where a launch's parameters come from.
struct ParameterSource {
  void** pointers = nullptr;   // kernelParams, or...
  const u8* buffer = nullptr;  // ... CU_LAUNCH_PARAM_BUFFER_POINTER with...
  u64 buffer_bytes = 0;        // ... CU_LAUNCH_PARAM_BUFFER_SIZE
};

// Reads kernelParams and extra of a launch, and checks them against what the (described) function takes.
CUresult read_parameters(const Function& function, void** kernel_parameters, void** extra,
                         ParameterSource& source);

// Packs the parameters: function.parameter_bytes bytes at `out`.
inline void pack_parameters(const Function& function, const ParameterSource& source, u8* out) {
  if (source.pointers == nullptr) {
    if (source.buffer == nullptr) return;
    std::memcpy(out, source.buffer, source.buffer_bytes);
    std::memset(out + source.buffer_bytes, 0, function.parameter_bytes - source.buffer_bytes);
    return;
  }
  void* const* pointer = source.pointers;
  for (const Parameter& parameter : function.parameters) {
    const void* from = *pointer++;
    // Nearly every parameter is a pointer or a number: a call to memcpy costs more than these copies.
    if (parameter.size == 8)
      std::memcpy(out + parameter.offset, from, 8);
    else if (parameter.size == 4)
      std::memcpy(out + parameter.offset, from, 4);
    else
      std::memcpy(out + parameter.offset, from, parameter.size);
  }
}

// A launch's shape as the driver's checks see it.
struct LaunchShape {
  u32 grid[3];
  u32 block[3];
  u32 shared_bytes;
};

// What the driver refuses at once: zero or too large grids and blocks, too much shared memory.
CUresult check_shape(const LaunchShape& shape, const FunctionOnDevice& facts, int device);

// CUlaunchAttributes ready to be sent: events are their handles, ignored entries are gone.
struct LaunchAttributes {
  wire::LaunchAttribute values[wire::kMaxLaunchAttributes];
  u32 count = 0;
  Event* events[2] = {};  // that the launch records
  // Where the handle of a device-updatable node is to be written. Such a launch waits for the answer.
  CUgraphDeviceNode* device_node = nullptr;
  u32 event_count = 0;
};
CUresult translate_attributes(CUlaunchAttribute* attributes, unsigned int count, LaunchAttributes& out);

}  // namespace gpupool::guest
