// Buffers and images of OpenGL that CUDA uses. The worker has both; a message says which context of OpenGL is
// current in this thread, and what the program has given that to do is sent before (opengl_of_program).
#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/private_table.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

// Where mapped buffers are, by resource: from the program's first question until they are unmapped.
class Pointers {
 public:
  static Pointers& all() {
    static auto& pointers = *new Pointers();  // never destroyed: exit handlers unmap
    return pointers;
  }
  CUresult enter(CUgraphicsResource resource, const Allocation& allocation) {
    const std::lock_guard lock(mutex_);
    if (allocation.size == 0 || addresses_.contains(resource)) return CUDA_SUCCESS;
    // The driver chooses the address, so there is no other to be had.
    if (!adopt_device_memory(allocation)) return CUDA_ERROR_OUT_OF_MEMORY;
    addresses_[resource] = allocation.address;
    return CUDA_SUCCESS;
  }
  void forget(CUgraphicsResource resource) {
    const std::lock_guard lock(mutex_);
    const auto found = addresses_.find(resource);
    if (found == addresses_.end()) return;
    address_space().take(found->second, {MemoryKind::graphics});
    addresses_.erase(found);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<CUgraphicsResource, u64> addresses_;
};

u32 opengl_context() {
  const FlushCurrent flush = opengl_of_program();
  return flush == nullptr ? 0 : flush();
}

CUresult need_opengl(const char* name, u32& index) {
  if (opengl_of_program() == nullptr) {  // there is none, or another that is out of the worker's reach
    log_unsupported(name);
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  index = opengl_context();
  if (index != 0) return CUDA_SUCCESS;
  log_debug("%s: this thread has no current context of OpenGL that gpupool forwards (docs/opengl.md)", name);
  return CUDA_ERROR_INVALID_VALUE;  // as the driver's (580): without a context there is no such object
}

CUresult register_object(wire::Function function, const char* name, CUgraphicsResource* resource, u32 object,
                         u32 target, u32 flags) {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  u32 index = 0;
  if (const CUresult result = need_opengl(name, index); result != CUDA_SUCCESS) return result;
  Call call(function);
  for (const u32 value : {index, object, target, flags}) call.put(value);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *resource = reinterpret_cast<CUgraphicsResource>(call.get<u64>());
  return CUDA_SUCCESS;
}

CUresult change(wire::Function function, unsigned int count, const CUgraphicsResource* resources,
                CUstream stream) {
  CUresult error = CUDA_SUCCESS;
  Stream* const on = resolve_stream(stream, error);
  if (on == nullptr) return error;
  if (count == 0 || resources == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = refuse_capturing(*on); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_legacy(*on); result != CUDA_SUCCESS) return result;
  Call call(function);
  call.on(*on);
  call.put(opengl_context());
  call.put_array(resources, count);
  return call.wait();
}

}  // namespace

namespace api {

CUresult cuGraphicsGLRegisterBuffer(CUgraphicsResource* resource, GLuint buffer, unsigned int flags) {
  return register_object(wire::Function::cuGraphicsGLRegisterBuffer, "cuGraphicsGLRegisterBuffer", resource,
                         buffer, 0, flags);
}

CUresult cuGraphicsGLRegisterImage(CUgraphicsResource* resource, GLuint image, GLenum target,
                                   unsigned int flags) {
  return register_object(wire::Function::cuGraphicsGLRegisterImage, "cuGraphicsGLRegisterImage", resource,
                         image, target, flags);
}

CUresult cuGraphicsUnregisterResource(CUgraphicsResource resource) {
  Call call(wire::Function::cuGraphicsUnregisterResource);
  call.put(opengl_context());
  call.put(resource);
  const CUresult result = call.wait();
  // A resource whose context has ended is no more, and so is its memory.
  if (result == CUDA_SUCCESS || result == CUDA_ERROR_INVALID_HANDLE) Pointers::all().forget(resource);
  return result;
}

CUresult cuGraphicsMapResources(unsigned int count, CUgraphicsResource* resources, CUstream stream) {
  return change(wire::Function::cuGraphicsMapResources, count, resources, stream);
}

CUresult cuGraphicsUnmapResources(unsigned int count, CUgraphicsResource* resources, CUstream stream) {
  const CUresult result = change(wire::Function::cuGraphicsUnmapResources, count, resources, stream);
  if (result == CUDA_SUCCESS)
    for (unsigned int i = 0; i < count; ++i) Pointers::all().forget(resources[i]);
  return result;
}

CUresult cuGraphicsResourceGetMappedPointer_v2(CUdeviceptr* address, size_t* bytes,
                                               CUgraphicsResource resource) {
  Context* const context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuGraphicsResourceGetMappedPointer_v2);
  call.put(resource);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  Allocation allocation;
  allocation.address = call.get<u64>();
  allocation.size = call.get<u64>();
  allocation.kind = MemoryKind::graphics;
  allocation.context = context;
  allocation.device = context->device;
  if (const CUresult result = Pointers::all().enter(resource, allocation); result != CUDA_SUCCESS)
    return result;
  if (address != nullptr) *address = allocation.address;
  if (bytes != nullptr) *bytes = allocation.size;
  return CUDA_SUCCESS;
}

CUresult cuGLGetDevices_v2(unsigned int* count, CUdevice* devices, unsigned int room, CUGLDeviceList which) {
  if (count == nullptr || (devices == nullptr && room != 0)) return CUDA_ERROR_INVALID_VALUE;
  u32 index = 0;
  if (const CUresult result = need_opengl("cuGLGetDevices", index); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuGLGetDevices_v2);
  call.put(index);
  call.put<u32>(which);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  std::vector<u32> theirs(wire::kMaxDevices);
  theirs.resize(std::min<u64>(call.get_array(theirs.data(), theirs.size()), theirs.size()));
  *count = 0;
  for (CUdevice device = 0; device < static_cast<CUdevice>(device_count()); ++device) {
    const int session = session_device(device);
    if (std::ranges::find(theirs, static_cast<u32>(session)) == theirs.end()) continue;
    if (*count < room) devices[*count] = device;
    ++*count;
  }
  return *count == 0 ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

// Of CUDA before 3.0; since then it has nothing to do (cudaGL.h).
CUresult cuGLInit() {
  return CUDA_SUCCESS;
}

CUresult cuGLCtxCreate_v2(CUcontext* context, unsigned int flags, CUdevice device) {
  return api::cuCtxCreate_v2(context, flags, device);
}

}  // namespace api
}  // namespace gpupool::guest
