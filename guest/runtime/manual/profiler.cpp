// cuProfiler*: there is no profiler on this side of the connection to start or stop. Starting and stopping
// succeed, as they do natively when no profiler is attached.
#include "guest_api.hpp"

namespace gpupool::guest::api {

CUresult cuProfilerStart() {
  return CUDA_SUCCESS;
}

CUresult cuProfilerStop() {
  return CUDA_SUCCESS;
}

}  // namespace gpupool::guest::api
