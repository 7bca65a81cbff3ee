// Attributes of streams. They hold no handle: the worker refuses the ones that would.
#include <algorithm>

#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {

CUresult cuStreamGetAttribute(CUstream handle, CUstreamAttrID attribute, CUstreamAttrValue* value) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  Call call(wire::Function::cuStreamGetAttribute);
  call.on(*stream);
  call.put(static_cast<u32>(attribute));
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) *value = call.get<CUstreamAttrValue>();
  return result;
}

CUresult cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute, const CUstreamAttrValue* value) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  Call call(wire::Function::cuStreamSetAttribute);
  call.on(*stream);
  call.put(static_cast<u32>(attribute));
  call.put(*value);
  const CUresult result = call.wait();
  if (result != CUDA_SUCCESS || attribute != CU_LAUNCH_ATTRIBUTE_PRIORITY) return result;
  const ContextDetails& details = *stream->context->details;
  stream->priority = std::clamp(value->priority, details.greatest_priority, details.least_priority);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::guest::api
