// cuProfiler*: there is no profiler on this side of the connection to start or stop. Starting and stopping
// succeed, as they do natively when no profiler is attached.
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"

namespace gpupool::guest::api {

CUresult cuProfilerStart() {
  return check_context(current_context());
}

CUresult cuProfilerStop() {
  return check_context(current_context());
}

}  // namespace gpupool::guest::api
