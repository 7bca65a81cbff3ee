// cuCtxGetLimit, cuCtxSetLimit, cache preferences. Values are kept here; the worker is told of changes.
#include "guest/runtime/manual/limits.hpp"

#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

// The worker answers what the limit is afterwards: the driver rounds.
CUresult change_limit(Context& context, u32 limit, u64 value) {
  const ScopedContext scope(&context);
  Call call(wire::Function::cuCtxSetLimit);
  call.put<u32>(limit);
  call.put<u64>(value);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  context.details->limits[limit].store(call.get<u64>(), std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult restore_limits(Context& context) {
  ContextDetails& details = *context.details;
  for (u32 i = 0; i < kLimits; ++i) {
    if (details.limits[i].load(std::memory_order_relaxed) == details.initial_limits[i]) continue;
    if (const CUresult result = change_limit(context, i, details.initial_limits[i]); result != CUDA_SUCCESS)
      return result;
  }
  details.cache_config.store(0, std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

namespace api {

CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  const auto index = static_cast<u32>(limit);
  if (index >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
  return change_limit(*context, index, value);
}

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  const auto index = static_cast<u32>(limit);
  if (index >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
  const u64 known = context->details->limits[index].load(std::memory_order_relaxed);
  if (known == kUnknownLimit) return CUDA_ERROR_UNSUPPORTED_LIMIT;
  *value = known;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCacheConfig(CUfunc_cache* config) {
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  *config = static_cast<CUfunc_cache>(context->details->cache_config.load(std::memory_order_relaxed));
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCacheConfig(CUfunc_cache config) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (static_cast<u32>(config) > CU_FUNC_CACHE_PREFER_EQUAL) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuCtxSetCacheConfig);
  call.put<u32>(static_cast<u32>(config));
  const CUresult result = call.send();
  if (result == CUDA_SUCCESS) context->details->cache_config.store(config, std::memory_order_relaxed);
  return result;
}

// Bank width is fixed on every GPU since Maxwell: the driver takes the call and answers FOUR_BYTE ever after
// (measured).
CUresult cuCtxGetSharedMemConfig(CUsharedconfig* config) {
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  *config = CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetSharedMemConfig(CUsharedconfig config) {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  return static_cast<u32>(config) > CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE ? CUDA_ERROR_INVALID_VALUE
                                                                              : CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
