// Launches as before CUDA 4: the block's shape, shared memory and parameters are set on the function, one
// call each, and then it is launched. The driver still has them, deprecated; here they are kept per function
// and become an ordinary launch.
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "guest/runtime/manual/launch.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

struct LegacyLaunch {
  u32 block[3] = {};
  u32 shared_bytes = 0;
  std::vector<u8> parameters;  // as long as cuParamSetSize said, or as something was put
};

struct LegacyLaunches {
  std::mutex mutex;
  std::unordered_map<u64, LegacyLaunch> by_function;  // wire handles: never the same for another function
};

LegacyLaunches& legacy_launches() {
  static auto& instance = *new LegacyLaunches();
  return instance;
}

template <typename Change>
CUresult change(CUfunction handle, Change change_it) {
  const Function* function = find(handle);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  LegacyLaunches& all = legacy_launches();
  const std::lock_guard lock(all.mutex);
  return change_it(all.by_function[function->handle.bits]);
}

CUresult put_parameter(CUfunction function, int offset, const void* value, size_t bytes) {
  if (offset < 0 || value == nullptr || bytes > wire::kMaxParameterBytes ||
      static_cast<u32>(offset) > wire::kMaxParameterBytes - bytes)
    return CUDA_ERROR_INVALID_VALUE;
  return change(function, [&](LegacyLaunch& launch) {
    const size_t end = static_cast<size_t>(offset) + bytes;
    if (launch.parameters.size() < end) launch.parameters.resize(end);
    std::memcpy(launch.parameters.data() + offset, value, bytes);
    return CUDA_SUCCESS;
  });
}

CUresult launch_grid(CUfunction function, int width, int height, CUstream stream) {
  if (width <= 0 || height <= 0) return CUDA_ERROR_INVALID_VALUE;
  LegacyLaunch launch;
  const CUresult result = change(function, [&](const LegacyLaunch& set) {
    launch = set;
    return set.block[0] == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;  // no shape
  });
  if (result != CUDA_SUCCESS) return result;
  size_t bytes = launch.parameters.size();
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, launch.parameters.data(), CU_LAUNCH_PARAM_BUFFER_SIZE,
                   &bytes, CU_LAUNCH_PARAM_END};
  return api::cuLaunchKernel(function, static_cast<u32>(width), static_cast<u32>(height), 1, launch.block[0],
                             launch.block[1], launch.block[2], launch.shared_bytes, stream, nullptr,
                             bytes == 0 ? nullptr : extra);
}

}  // namespace

namespace api {

CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z) {
  if (x <= 0 || y <= 0 || z <= 0) return CUDA_ERROR_INVALID_VALUE;
  return change(function, [&](LegacyLaunch& launch) {
    launch.block[0] = static_cast<u32>(x);
    launch.block[1] = static_cast<u32>(y);
    launch.block[2] = static_cast<u32>(z);
    return CUDA_SUCCESS;
  });
}

CUresult cuFuncSetSharedSize(CUfunction function, unsigned int bytes) {
  return change(function, [&](LegacyLaunch& launch) {
    launch.shared_bytes = bytes;
    return CUDA_SUCCESS;
  });
}

CUresult cuParamSetSize(CUfunction function, unsigned int bytes) {
  if (bytes > wire::kMaxParameterBytes) return CUDA_ERROR_INVALID_VALUE;
  return change(function, [&](LegacyLaunch& launch) {
    launch.parameters.resize(bytes);
    return CUDA_SUCCESS;
  });
}

CUresult cuParamSeti(CUfunction function, int offset, unsigned int value) {
  return put_parameter(function, offset, &value, sizeof value);
}

CUresult cuParamSetf(CUfunction function, int offset, float value) {
  return put_parameter(function, offset, &value, sizeof value);
}

CUresult cuParamSetv(CUfunction function, int offset, void* value, unsigned int bytes) {
  return put_parameter(function, offset, value, bytes);
}

// cuda.h: nothing has to be said of a module's own references, which are all that there are.
CUresult cuParamSetTexRef(CUfunction function, int unit, CUtexref reference) {
  if (unit != CU_PARAM_TR_DEFAULT || reference == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return find(function) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

CUresult cuLaunch(CUfunction function) {
  return launch_grid(function, 1, 1, nullptr);
}

CUresult cuLaunchGrid(CUfunction function, int width, int height) {
  return launch_grid(function, width, height, nullptr);
}

CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream) {
  return launch_grid(function, width, height, stream);
}

}  // namespace api
}  // namespace gpupool::guest
