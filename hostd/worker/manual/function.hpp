// Functions and kernels in the worker.
#pragma once

#include <cuda.h>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Puts a function under the handle that the client chose.
void put_function(Worker& worker, wire::Handle handle, CUfunction function, bool kernel);
// Forgets the functions of a module or library that is gone.
void drop_functions(Worker& worker, const std::vector<wire::Handle>& functions);

// The function as the driver's CUfunction calls want it: a kernel's function in the current context, whose
// handle index is `context`.
CUresult resolve_kernel(Worker& worker, FunctionEntry& entry, u32 context);
inline CUresult in_context(Worker& worker, FunctionEntry& entry, u32 context, CUfunction& function) {
  function = entry.function;
  if (!entry.kernel) return CUDA_SUCCESS;
  if (entry.resolved_context != context || context == 0) {
    if (const CUresult result = resolve_kernel(worker, entry, context); result != CUDA_SUCCESS) return result;
  }
  function = entry.resolved;
  return CUDA_SUCCESS;
}

// Answers what the client must know of a function (wire/cpp/launch_message.hpp), its attributes on the
// session's device `device` unless that is negative.
void write_description(Worker& worker, Request& request, FunctionEntry& entry, i32 device);

}  // namespace gpupool::worker
