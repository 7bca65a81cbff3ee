// Texture and surface objects. Array handles are wire handles already, so a description travels as it is.
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {

CUresult cuTexObjectCreate(CUtexObject* object, const CUDA_RESOURCE_DESC* resource,
                           const CUDA_TEXTURE_DESC* texture, const CUDA_RESOURCE_VIEW_DESC* view) {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  if (object == nullptr || resource == nullptr || texture == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (resource->resType > CU_RESOURCE_TYPE_PITCH2D) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuTexObjectCreate);
  call.put(*resource);
  call.put(*texture);
  call.put<u32>(view != nullptr);
  call.put(view != nullptr ? *view : CUDA_RESOURCE_VIEW_DESC{});
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *object = call.get<u64>();
  return CUDA_SUCCESS;
}

CUresult cuTexObjectGetResourceDesc(CUDA_RESOURCE_DESC* resource, CUtexObject object) {
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuTexObjectGetResourceDesc);
  call.put<u64>(object);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *resource = call.get<CUDA_RESOURCE_DESC>();
  return CUDA_SUCCESS;
}

CUresult cuSurfObjectCreate(CUsurfObject* object, const CUDA_RESOURCE_DESC* resource) {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  if (object == nullptr || resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (resource->resType > CU_RESOURCE_TYPE_PITCH2D) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuSurfObjectCreate);
  call.put(*resource);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *object = call.get<u64>();
  return CUDA_SUCCESS;
}

CUresult cuSurfObjectGetResourceDesc(CUDA_RESOURCE_DESC* resource, CUsurfObject object) {
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuSurfObjectGetResourceDesc);
  call.put<u64>(object);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *resource = call.get<CUDA_RESOURCE_DESC>();
  return CUDA_SUCCESS;
}

}  // namespace gpupool::guest::api
