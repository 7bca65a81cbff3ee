// The profiler's switch: there is no profiler to switch.
#include "hostd/softgpu/api/context.hpp"

namespace gpupool::softgpu {

GPUPOOL_CUDA CUresult cuProfilerStart() {
  return call([] { current_context(); });
}

GPUPOOL_CUDA CUresult cuProfilerStop() {
  return call([] { current_context(); });
}

}  // namespace gpupool::softgpu
