// Which context is current, and calls about the current one.
#include "hostd/softgpu/api/thread_contexts.hpp"

#include <vector>

#include "hostd/softgpu/api/capture.hpp"

namespace gpupool::softgpu {

namespace {

thread_local std::vector<std::shared_ptr<Context>> t_stack;

}  // namespace

void push_context(std::shared_ptr<Context> context) {
  t_stack.push_back(std::move(context));
}

void forget_context(const Context& context) {
  if (!t_stack.empty() && t_stack.back().get() == &context) t_stack.pop_back();
}

std::shared_ptr<Context> current_context_any() {
  require(!t_stack.empty() && t_stack.back() != nullptr, CUDA_ERROR_INVALID_CONTEXT);
  require(!t_stack.back()->destroyed.load(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
  return t_stack.back();
}

std::shared_ptr<Context> current_context() {
  auto context = current_context_any();
  context->require_healthy();
  return context;
}

std::shared_ptr<Context> context_of(CUcontext handle) {
  if (handle == nullptr) return current_context_any();
  return contexts().get(handle, CUDA_ERROR_INVALID_CONTEXT);
}

GPUPOOL_CUDA CUresult cuCtxPushCurrent_v2(CUcontext handle) {
  return call([&] { push_context(contexts().get(handle, CUDA_ERROR_INVALID_CONTEXT)); });
}

GPUPOOL_CUDA CUresult cuCtxPopCurrent_v2(CUcontext* out) {
  return call([&] {
    require(!t_stack.empty(), CUDA_ERROR_INVALID_CONTEXT);
    if (out != nullptr) *out = t_stack.back()->handle;
    t_stack.pop_back();
  });
}

GPUPOOL_CUDA CUresult cuCtxSetCurrent(CUcontext handle) {
  return call([&] {
    if (handle == nullptr) {
      if (!t_stack.empty()) t_stack.pop_back();
      return;
    }
    auto context = contexts().get(handle, CUDA_ERROR_INVALID_CONTEXT);
    if (t_stack.empty())
      t_stack.push_back(std::move(context));
    else
      t_stack.back() = std::move(context);
  });
}

GPUPOOL_CUDA CUresult cuCtxGetCurrent(CUcontext* out) {
  return call([&] {
    require(out != nullptr);
    *out = t_stack.empty() ? nullptr : t_stack.back()->handle;
  });
}

GPUPOOL_CUDA CUresult cuCtxGetDevice(CUdevice* device) {
  return call([&] {
    require(device != nullptr);
    *device = current_context_any()->device->ordinal;
  });
}

GPUPOOL_CUDA CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext handle) {
  return call([&] {
    require(device != nullptr);
    *device = context_of(handle)->device->ordinal;
  });
}

GPUPOOL_CUDA CUresult cuCtxGetFlags(unsigned int* flags) {
  return call([&] {
    require(flags != nullptr);
    *flags = current_context_any()->flags.load();
  });
}

GPUPOOL_CUDA CUresult cuCtxSetFlags(unsigned int flags) {
  return call([&] { current_context()->flags.store(flags); });
}

GPUPOOL_CUDA CUresult cuCtxGetId(CUcontext handle, unsigned long long* id) {
  return call([&] {
    require(id != nullptr);
    *id = context_of(handle)->id;
  });
}

GPUPOOL_CUDA CUresult cuCtxGetApiVersion(CUcontext handle, unsigned int* version) {
  return call([&] {
    require(version != nullptr);
    *version = context_of(handle)->api_version;
  });
}

// A faulted context is waited for as well: when the fault has been reported, nothing of it runs any more.
GPUPOOL_CUDA CUresult cuCtxSynchronize() {
  return call([&] {
    const auto context = current_context_any();
    refuse_unsafe_call();
    return context->synchronize();
  });
}

GPUPOOL_CUDA CUresult cuCtxSynchronize_v2(CUcontext handle) {
  return call([&] {
    const auto context = context_of(handle);
    refuse_unsafe_call();
    return context->synchronize();
  });
}

GPUPOOL_CUDA CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  return call([&] {
    const auto context = current_context();
    require(static_cast<u32>(limit) < CU_LIMIT_MAX);
    require(limit <= CU_LIMIT_PERSISTING_L2_CACHE_SIZE, CUDA_ERROR_UNSUPPORTED_LIMIT);
    context->limits[static_cast<u32>(limit)].store(value);
  });
}

GPUPOOL_CUDA CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  return call([&] {
    require(value != nullptr && static_cast<u32>(limit) < CU_LIMIT_MAX);
    require(limit <= CU_LIMIT_PERSISTING_L2_CACHE_SIZE, CUDA_ERROR_UNSUPPORTED_LIMIT);
    *value = current_context()->limits[static_cast<u32>(limit)].load();
  });
}

GPUPOOL_CUDA CUresult cuCtxGetCacheConfig(CUfunc_cache* config) {
  return call([&] {
    require(config != nullptr);
    *config = static_cast<CUfunc_cache>(current_context()->cache_config.load());
  });
}

GPUPOOL_CUDA CUresult cuCtxSetCacheConfig(CUfunc_cache config) {
  return call([&] {
    require(static_cast<u32>(config) <= CU_FUNC_CACHE_PREFER_EQUAL);
    current_context()->cache_config.store(config);
  });
}

GPUPOOL_CUDA CUresult cuCtxGetSharedMemConfig(CUsharedconfig* config) {
  return call([&] {
    require(config != nullptr);
    *config = static_cast<CUsharedconfig>(current_context()->shared_config.load());
  });
}

GPUPOOL_CUDA CUresult cuCtxSetSharedMemConfig(CUsharedconfig config) {
  return call([&] {
    require(static_cast<u32>(config) <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE);
    current_context()->shared_config.store(config);
  });
}

GPUPOOL_CUDA CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return call([&] {
    current_context();
    if (least != nullptr) *least = kLeastPriority;
    if (greatest != nullptr) *greatest = kGreatestPriority;
  });
}

GPUPOOL_CUDA CUresult cuCtxResetPersistingL2Cache() {
  return call([&] { current_context(); });
}

GPUPOOL_CUDA CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
  return call([&] {
    require(flags == 0);
    const auto context = current_context();
    const auto other = contexts().get(peer, CUDA_ERROR_INVALID_CONTEXT);
    require(other->device != context->device, CUDA_ERROR_INVALID_DEVICE);
    const std::lock_guard lock(context->submit_mutex);
    require(context->peers.insert(other->device->ordinal).second, CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
  });
}

GPUPOOL_CUDA CUresult cuCtxDisablePeerAccess(CUcontext peer) {
  return call([&] {
    const auto context = current_context();
    const auto other = contexts().get(peer, CUDA_ERROR_INVALID_CONTEXT);
    const std::lock_guard lock(context->submit_mutex);
    require(context->peers.erase(other->device->ordinal) != 0, CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
  });
}

}  // namespace gpupool::softgpu
