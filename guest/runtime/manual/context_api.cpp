// cuCtx*: creating, destroying, the thread's stack of contexts, and questions about a context. The ones that
// programs ask per launch (cuCtxGetCurrent, cuCtxGetDevice) are a thread-local read.
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/limits.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

CUresult create(CUcontext* out, u32 flags, CUdevice device) {
  if (out == nullptr || (flags & ~u32{CU_CTX_FLAGS_MASK}) != 0 || !valid_schedule(flags))
    return CUDA_ERROR_INVALID_VALUE;
  if (device_info(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  CUresult error = CUDA_SUCCESS;
  Context* context = create_context(device, flags, error);
  if (context == nullptr) return error;
  push_context(context);
  *out = handle_of(context);
  return CUDA_SUCCESS;
}

// The context a query names: null means the current one.
CUresult named_or_current(CUcontext handle, Context*& context) {
  context = handle == nullptr ? top_context() : find(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return context->alive.load(std::memory_order_acquire) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

// A context with a stream that is capturing cannot be waited for; trying ends the capture (CUDA Programming
// Guide, "Prohibited and Unhandled Operations" of stream capture).
CUresult refuse_captures(Context& context) {
  if (g_active_captures.load(std::memory_order_acquire) == 0) return CUDA_SUCCESS;
  std::vector<Stream*> streams;
  {
    const std::lock_guard lock(context.mutex);
    streams = context.streams;
  }
  CUresult refused = CUDA_SUCCESS;
  for (Stream* stream : streams)
    if (const CUresult result = refuse_capturing(*stream); result != CUDA_SUCCESS) refused = result;
  return refused;
}

}  // namespace

namespace api {

CUresult cuCtxCreate(CUcontext* out, unsigned int flags, CUdevice dev) {
  return create(out, flags, dev);
}

CUresult cuCtxCreate_v2(CUcontext* out, unsigned int flags, CUdevice dev) {
  return create(out, flags, dev);
}

CUresult cuCtxCreate_v3(CUcontext* out, CUexecAffinityParam* affinity, int count, unsigned int flags,
                        CUdevice dev) {
  // Execution affinity needs MPS, which never spans clients here.
  if (affinity != nullptr && count > 0) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  return create(out, flags, dev);
}

CUresult cuCtxCreate_v4(CUcontext* out, CUctxCreateParams* params, unsigned int flags, CUdevice dev) {
  if (params != nullptr && params->cigParams != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  if (params != nullptr && params->execAffinityParams != nullptr && params->numExecAffinityParams > 0)
    return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  return create(out, flags, dev);
}

CUresult cuCtxDestroy_v2(CUcontext handle) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = find(handle);
  if (context == nullptr || context->primary || context->green) return CUDA_ERROR_INVALID_CONTEXT;
  const bool current = top_context() == context;
  const CUresult result = destroy_context(*context);
  if (current && result != CUDA_ERROR_CONTEXT_IS_DESTROYED) pop_context();
  return result;
}

CUresult cuCtxDestroy(CUcontext handle) {
  return api::cuCtxDestroy_v2(handle);
}

CUresult cuCtxAttach(CUcontext* out, unsigned int flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  context->details->attached.fetch_add(1, std::memory_order_relaxed);
  *out = handle_of(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxDetach(CUcontext handle) {
  Context* context = handle == nullptr ? nullptr : find(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (!context->alive.load(std::memory_order_acquire)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (context->details->attached.fetch_sub(1, std::memory_order_acq_rel) > 1) return CUDA_SUCCESS;
  return api::cuCtxDestroy_v2(handle);
}

CUresult cuCtxPushCurrent_v2(CUcontext handle) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = find(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  push_context(context);  // a destroyed one too: the driver complains only when it is used (measured)
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext handle) {
  return api::cuCtxPushCurrent_v2(handle);
}

CUresult cuCtxPopCurrent_v2(CUcontext* out) {
  if (top_context() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  Context* context = pop_context();
  if (out != nullptr) *out = handle_of(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* out) {
  return api::cuCtxPopCurrent_v2(out);
}

// Replaces the top of the stack; null takes it off.
CUresult cuCtxSetCurrent(CUcontext handle) {
  Context* const context = handle != nullptr ? find(handle) : nullptr;
  if (handle != nullptr && context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  Context* before = top_context();
  if (before == context) return CUDA_SUCCESS;
  if (before != nullptr) pop_context();
  if (context != nullptr) push_context(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *out = handle_of(top_context());
  return CUDA_SUCCESS;
}

// Answers for a destroyed context too, as the driver does (measured).
CUresult cuCtxGetDevice(CUdevice* device) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Context* context = current_context();
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *device = context->device;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext handle) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Context* context = handle == nullptr ? current_context() : find(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *device = context->device;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetFlags(unsigned int* flags) {
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Context* context = current_context();
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *flags = context->flags.load(std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

CUresult cuCtxSetFlags(unsigned int flags) {
  if ((flags & ~u32{CU_CTX_FLAGS_MASK}) != 0 || !valid_schedule(flags)) return CUDA_ERROR_INVALID_VALUE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  context->flags.store(flags | (context->primary ? u32{CU_CTX_MAP_HOST} : 0u), std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext handle, unsigned long long* id) {
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  if (const CUresult result = named_or_current(handle, context); result != CUDA_SUCCESS) return result;
  *id = context->id;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext handle, unsigned int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  if (const CUresult result = named_or_current(handle, context); result != CUDA_SUCCESS)
    return handle == nullptr ? result : CUDA_ERROR_INVALID_CONTEXT;
  *version = context->api_version;
  return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize_v2(CUcontext handle) {
  Context* context = nullptr;
  if (const CUresult result = named_or_current(handle, context); result != CUDA_SUCCESS) return result;
  // What runs in a green context is among its primary context's streams.
  context = context->owner;
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (const CUresult result = refuse_captures(*context); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_context_synchronize(*context); result != CUDA_SUCCESS) return result;
  return Session::current()->synchronize(*context);
}

CUresult cuCtxSynchronize() {
  return api::cuCtxSynchronize_v2(nullptr);
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (least != nullptr) *least = context->details->least_priority;
  if (greatest != nullptr) *greatest = context->details->greatest_priority;
  return CUDA_SUCCESS;
}

CUresult cuCtxResetPersistingL2Cache() {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  return Call(wire::Function::cuCtxResetPersistingL2Cache).send();
}

CUresult cuCtxGetExecAffinity(CUexecAffinityParam* affinity, CUexecAffinityType type) {
  if (affinity == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (type != CU_EXEC_AFFINITY_TYPE_SM_COUNT) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  int multiprocessors = 0;
  device_attribute(context->device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, multiprocessors);
  affinity->type = type;
  affinity->param.smCount.val = static_cast<unsigned int>(multiprocessors);
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
