// Functions and kernels as the client knows them: made at a look-up, described by the worker once, then
// answered from memory. Launches, occupancy and graphs use this.
#pragma once

#include <cuda.h>

#include <string_view>

#include "guest/runtime/message.hpp"

namespace gpupool::guest {

// A new function with a wire handle, or null when 2^20 are alive. It is not known to the worker yet.
Function* make_function(std::string_view name);
// Ends a function whose module or library is gone, and gives its handle back.
void destroy_function(Function* function);

// The device that `function` runs on when called from this thread: its own context's, or for a kernel that of
// the current context. CUDA_SUCCESS, or what the driver answers when there is none.
CUresult device_of(const Function& function, int& device);

// Reads a description from an answer: the parameters, and the attributes on `device` unless that is negative.
// NOT_READY when the answer had no room for it; else what kept the driver from describing it.
CUresult read_description(Call& call, Function& function, int device);

// The function's facts on a device, asked for if they are not known yet. Null with `error` set.
FunctionOnDevice* describe(Function& function, int device, CUresult& error);

// The same without a message where possible: for the launch path.
inline FunctionOnDevice* facts_on(Function& function, int device, CUresult& error) {
  FunctionOnDevice* facts = function.on_device[static_cast<u32>(device)].load(std::memory_order_acquire);
  return facts != nullptr ? facts : describe(function, device, error);
}

// The parameters are known after this, whatever the device.
CUresult describe_parameters(Function& function);

}  // namespace gpupool::guest
