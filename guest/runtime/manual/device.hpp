// The devices as the program sees them: the session's vGPUs after CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER.
// A CUdevice is an index into that list; messages carry the session's own index (session_device).
#pragma once

#include <cuda.h>

#include <string_view>
#include <vector>

#include "guest/runtime/session.hpp"

namespace gpupool::guest {

// Applies the two variables (null: not set) to the session's devices and writes the session indices that are
// visible, in order. INVALID_DEVICE when a device is named twice, NO_DEVICE when none is left.
CUresult choose_visible(std::span<const wire::DeviceInfo> devices, const char* visible, const char* order,
                        std::vector<u32>& chosen);

// Makes the choice for this process, once, from its environment. Called by cuInit.
CUresult open_devices(const Session& session);

// 0 before open_devices().
u32 device_count();
// The session's index of `device`, or -1 when the program has no such device.
int session_device(CUdevice device);
// Null when the program has no such device.
const wire::DeviceInfo* device_info(CUdevice device);
// An attribute as this program may rely on it: what does not work through a forwarding driver reads 0. False
// when the device does not know the attribute.
bool device_attribute(CUdevice device, int attribute, int& value);

}  // namespace gpupool::guest
