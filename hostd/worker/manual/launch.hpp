// Launch configurations as they arrive.
#pragma once

#include "hostd/worker/worker.hpp"
#include "wire/cpp/launch_message.hpp"

namespace gpupool::worker {

// Reads `count` attributes and turns event handles into events. INVALID_HANDLE for an event that is gone.
CUresult read_launch_attributes(Worker& worker, Request& request, u32 count, CUlaunchAttribute* out);

CUlaunchConfig launch_config(const wire::LaunchHeader& header, CUstream stream, CUlaunchAttribute* attributes,
                             u32 count);

}  // namespace gpupool::worker
