// Functions and kernels in the worker.
#pragma once

#include <cuda.h>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Puts a function under the handle that the client chose.
void put_function(Worker& worker, wire::Handle handle, CUfunction function, bool kernel);
// Forgets the functions of a module or library that is gone.
void drop_functions(Worker& worker, const std::vector<wire::Handle>& functions);

// The function as the driver's CUfunction calls want it: a kernel's function in the current context.
CUresult in_current_context(Worker& worker, const FunctionEntry& entry, CUfunction& function);

// Answers what the client must know of a function (wire/cpp/launch_message.hpp), its attributes on the
// session's device `device` unless that is negative.
void write_description(Worker& worker, Request& request, FunctionEntry& entry, i32 device);

}  // namespace gpupool::worker
