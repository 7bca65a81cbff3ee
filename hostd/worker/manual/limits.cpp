// Limits and cache preference of the current context.
#include "worker_manual.hpp"

namespace gpupool::worker {

// Answers the limit as it is afterwards: the driver rounds.
CUresult handle_cuCtxSetLimit(Worker& worker, Request& request) {
  const auto limit = request.in.get<u32>();
  const auto value = request.in.get<u64>();
  request.in.finish();
  if (limit >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = worker.driver.cuCtxSetLimit(static_cast<CUlimit>(limit), value);
  size_t now = value;
  if (result == CUDA_SUCCESS &&
      worker.driver.cuCtxGetLimit(&now, static_cast<CUlimit>(limit)) != CUDA_SUCCESS)
    now = value;
  request.out->put<u64>(now);
  return result;
}

CUresult handle_cuCtxSetCacheConfig(Worker& worker, Request& request) {
  const auto config = request.in.get<u32>();
  request.in.finish();
  if (config > CU_FUNC_CACHE_PREFER_EQUAL) return CUDA_ERROR_INVALID_VALUE;
  return worker.driver.cuCtxSetCacheConfig(static_cast<CUfunc_cache>(config));
}

}  // namespace gpupool::worker
