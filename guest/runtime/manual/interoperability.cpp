// Objects of other APIs: memory and semaphores of Vulkan, DirectX or NvSci.
// They live in the program's process and driver, where the worker's driver cannot reach them, so none is ever
// imported: what makes one is refused, and what takes one meets no valid handle.
#include <algorithm>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"

namespace gpupool::guest::api {
namespace {

CUresult refuse(const char* name) {
  log_unsupported(name);
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult check_semaphores(const CUexternalSemaphore* semaphores, const void* parameters, unsigned int count,
                          CUstream stream) {
  CUresult error = CUDA_SUCCESS;
  if (resolve_stream(stream, error) == nullptr) return error;
  if (count == 0 || semaphores == nullptr || parameters == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return CUDA_ERROR_INVALID_HANDLE;
}

}  // namespace

CUresult cuImportExternalMemory(CUexternalMemory* out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC* description) {
  if (out == nullptr || description == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (description->type < CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD ||
      description->type > CU_EXTERNAL_MEMORY_HANDLE_TYPE_DMABUF_FD || description->size == 0 ||
      (description->flags & ~u32{CUDA_EXTERNAL_MEMORY_DEDICATED}) != 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  return refuse("cuImportExternalMemory");
}

CUresult cuExternalMemoryGetMappedBuffer(CUdeviceptr* out, CUexternalMemory,
                                         const CUDA_EXTERNAL_MEMORY_BUFFER_DESC* description) {
  if (out == nullptr || description == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuExternalMemoryGetMappedMipmappedArray(
    CUmipmappedArray* out, CUexternalMemory, const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC* description) {
  if (out == nullptr || description == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuDestroyExternalMemory(CUexternalMemory) {
  return CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuImportExternalSemaphore(CUexternalSemaphore* out,
                                   const CUDA_EXTERNAL_SEMAPHORE_HANDLE_DESC* description) {
  if (out == nullptr || description == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (description->type < CU_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD ||
      description->type > CU_EXTERNAL_SEMAPHORE_HANDLE_TYPE_TIMELINE_SEMAPHORE_WIN32 ||
      description->flags != 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  return refuse("cuImportExternalSemaphore");
}

CUresult cuSignalExternalSemaphoresAsync(const CUexternalSemaphore* semaphores,
                                         const CUDA_EXTERNAL_SEMAPHORE_SIGNAL_PARAMS* parameters,
                                         unsigned int count, CUstream stream) {
  return check_semaphores(semaphores, parameters, count, stream);
}

CUresult cuWaitExternalSemaphoresAsync(const CUexternalSemaphore* semaphores,
                                       const CUDA_EXTERNAL_SEMAPHORE_WAIT_PARAMS* parameters,
                                       unsigned int count, CUstream stream) {
  return check_semaphores(semaphores, parameters, count, stream);
}

CUresult cuDestroyExternalSemaphore(CUexternalSemaphore) {
  return CUDA_ERROR_INVALID_HANDLE;
}

}  // namespace gpupool::guest::api
