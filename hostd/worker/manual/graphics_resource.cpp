// Buffers and images of OpenGL that CUDA uses (docs/opengl.md). The driver finds the objects in the context
// of OpenGL that is current in the calling thread, so each call here makes that one current which is current
// in the client's thread. Names of objects are the driver's own: those of another session mean nothing in it.
#include "hostd/worker/manual/graphics_resource.hpp"

#include <algorithm>

#include "hostd/worker/opengl/server.hpp"
#include "hostd/worker/opengl/storage.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kMostAtOnce = 1u << 16;
constexpr u32 kMostDevices = 64;
constexpr u32 kKnownFlags = CU_GRAPHICS_REGISTER_FLAGS_READ_ONLY | CU_GRAPHICS_REGISTER_FLAGS_WRITE_DISCARD |
                            CU_GRAPHICS_REGISTER_FLAGS_SURFACE_LDST |
                            CU_GRAPHICS_REGISTER_FLAGS_TEXTURE_GATHER;

// By context of OpenGL: the first of those that share their objects with it.
std::unordered_map<u32, u32> g_groups;

// What the vGPU is charged for an object stays so while it is registered: the driver keeps its memory when
// the program deletes its name.
std::unordered_map<CUgraphicsResource, std::shared_ptr<GlThing>> g_storage;

bool use_opengl(Worker& worker, u32 index) {
  return worker.opengl != nullptr && worker.opengl->use(index) != nullptr;
}

// What the client was told of a mapped resource means nothing from now on: the driver follows such pointers.
void forget_arrays(Worker& worker, GraphicsEntry& entry) {
  for (const wire::Handle array : entry.arrays)
    if (array.kind() == wire::HandleKind::array)
      worker.arrays.take(array);
    else
      worker.mipmapped_arrays.take(array);
  entry.arrays.clear();
}

// That fails when its context of OpenGL does; then the driver has lost the object already.
void unregister(Worker& worker, GraphicsEntry& entry) {
  if (use_opengl(worker, entry.opengl_context)) {
    if (entry.mapped) worker.driver.cuGraphicsUnmapResources(1, &entry.resource, nullptr);
    worker.driver.cuGraphicsUnregisterResource(entry.resource);
  }
  g_storage.erase(entry.resource);
  forget_arrays(worker, entry);
}

CUresult answer_registered(Worker& worker, Request& request, u32 opengl_context, CUgraphicsResource resource,
                           u64 object) {
  GraphicsEntry entry{resource, opengl_context, request.context_index, false, {}};
  const wire::Handle handle = worker.graphics_resources.add(entry);
  if (!handle) {
    unregister(worker, entry);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  g_storage[resource] = (*worker.opengl->use(opengl_context)->storage)[object];
  request.out->put(handle);
  return CUDA_SUCCESS;
}

// u32 context of OpenGL, array of resources.
struct Several {
  std::vector<GraphicsEntry*> entries;
  std::vector<CUgraphicsResource> resources;
};

CUresult read_several(Worker& worker, Request& request, Several& several) {
  const u32 opengl_context = request.in.get<u32>();
  const auto handles = request.in.get_array<wire::Handle>(kMostAtOnce);
  request.in.finish();
  if (handles.empty()) throw wire::ProtocolError("no resource to map or unmap");
  if (!request.stream_handle) throw wire::ProtocolError("resources without a stream");
  for (const wire::Handle handle : handles) {
    GraphicsEntry* const entry = worker.graphics_resources.find(handle);
    if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    several.entries.push_back(entry);
    several.resources.push_back(entry->resource);
  }
  const u32 index = opengl_context != 0 ? opengl_context : several.entries.front()->opengl_context;
  return use_opengl(worker, index) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_GRAPHICS_CONTEXT;
}

template <typename Table, typename Object>
CUresult answer_array(Table& table, Request& request, GraphicsEntry& entry, Object array) {
  const wire::Handle handle = table.find_or_add(array);
  if (!handle) return CUDA_ERROR_OUT_OF_MEMORY;
  if (std::ranges::find(entry.arrays, handle) == entry.arrays.end()) entry.arrays.push_back(handle);
  request.out->put(handle);
  return CUDA_SUCCESS;
}

}  // namespace

void opengl_context_made(u32 index, u32 share) {
  const auto shared = g_groups.find(share);
  g_groups[index] = shared == g_groups.end() ? index : shared->second;
}

void opengl_context_ends(Worker& worker, u32 index) {
  const auto found = g_groups.find(index);
  if (found == g_groups.end()) return;
  const u32 group = found->second;
  g_groups.erase(found);
  const auto heir = std::ranges::find_if(g_groups, [&](const auto& each) { return each.second == group; });
  // A group is named by a context that may go: its index may then be that of a new one.
  if (heir != g_groups.end() && group == index) {
    const u32 named = heir->first;
    for (auto& each : g_groups)
      if (each.second == group) each.second = named;
  }
  std::vector<wire::Handle> orphans;
  worker.graphics_resources.each([&](wire::Handle handle, GraphicsEntry& entry) {
    if (entry.opengl_context != index) return;
    if (heir == g_groups.end())
      orphans.push_back(handle);
    else
      entry.opengl_context = heir->first;
  });
  for (const wire::Handle handle : orphans) {
    std::optional<GraphicsEntry> entry = worker.graphics_resources.take(handle);
    const CUcontext* const context =
        worker.contexts.find(wire::Handle::make(wire::HandleKind::context, 0, entry->context));
    g_storage.erase(entry->resource);
    if (context == nullptr || worker.driver.cuCtxSetCurrent(*context) != CUDA_SUCCESS) continue;
    worker.context_changed = true;
    unregister(worker, *entry);
  }
}

void drop_graphics_resources(Worker& worker, u32 owner) {
  worker.graphics_resources.take_owned(
      owner, [&](wire::Handle, GraphicsEntry& entry) { unregister(worker, entry); });
}

// u32 context of OpenGL, u32 buffer, u32 0, u32 flags.
CUresult handle_cuGraphicsGLRegisterBuffer(Worker& worker, Request& request) {
  const u32 opengl_context = request.in.get<u32>();
  const u32 buffer = request.in.get<u32>();
  request.in.get<u32>();
  const u32 flags = request.in.get<u32>();
  request.in.finish();
  if (worker.driver.cuGraphicsGLRegisterBuffer == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  if ((flags & ~kKnownFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (!use_opengl(worker, opengl_context)) return CUDA_ERROR_INVALID_GRAPHICS_CONTEXT;
  CUgraphicsResource resource = nullptr;
  const CUresult result = worker.driver.cuGraphicsGLRegisterBuffer(&resource, buffer, flags);
  if (result != CUDA_SUCCESS) return result;
  return answer_registered(worker, request, opengl_context, resource, GlStorage::key(GlKind::buffer, buffer));
}

// u32 context of OpenGL, u32 texture or renderbuffer, u32 target, u32 flags.
CUresult handle_cuGraphicsGLRegisterImage(Worker& worker, Request& request) {
  const u32 opengl_context = request.in.get<u32>();
  const u32 image = request.in.get<u32>();
  const u32 target = request.in.get<u32>();
  const u32 flags = request.in.get<u32>();
  request.in.finish();
  if (worker.driver.cuGraphicsGLRegisterImage == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  if ((flags & ~kKnownFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (!use_opengl(worker, opengl_context)) return CUDA_ERROR_INVALID_GRAPHICS_CONTEXT;
  CUgraphicsResource resource = nullptr;
  const CUresult result = worker.driver.cuGraphicsGLRegisterImage(&resource, image, target, flags);
  if (result != CUDA_SUCCESS) return result;
  const GlKind kind = target == gl::GL_RENDERBUFFER ? GlKind::renderbuffer : GlKind::texture;
  return answer_registered(worker, request, opengl_context, resource, GlStorage::key(kind, image));
}

// u32 context of OpenGL or 0, resource.
CUresult handle_cuGraphicsUnregisterResource(Worker& worker, Request& request) {
  const u32 opengl_context = request.in.get<u32>();
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  GraphicsEntry* const entry = worker.graphics_resources.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!use_opengl(worker, opengl_context != 0 ? opengl_context : entry->opengl_context))
    return CUDA_ERROR_INVALID_GRAPHICS_CONTEXT;
  const CUresult result = worker.driver.cuGraphicsUnregisterResource(entry->resource);
  if (result != CUDA_SUCCESS) return result;
  g_storage.erase(entry->resource);
  forget_arrays(worker, *entry);
  worker.graphics_resources.take(handle);
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphicsMapResources(Worker& worker, Request& request) {
  Several several;
  if (const CUresult result = read_several(worker, request, several); result != CUDA_SUCCESS) return result;
  const CUresult result = worker.driver.cuGraphicsMapResources(static_cast<u32>(several.resources.size()),
                                                               several.resources.data(), request.stream);
  if (result == CUDA_SUCCESS)
    for (GraphicsEntry* const entry : several.entries) entry->mapped = true;
  return result;
}

CUresult handle_cuGraphicsUnmapResources(Worker& worker, Request& request) {
  Several several;
  if (const CUresult result = read_several(worker, request, several); result != CUDA_SUCCESS) return result;
  const CUresult result = worker.driver.cuGraphicsUnmapResources(static_cast<u32>(several.resources.size()),
                                                                 several.resources.data(), request.stream);
  if (result != CUDA_SUCCESS) return result;
  for (GraphicsEntry* const entry : several.entries) {
    entry->mapped = false;
    forget_arrays(worker, *entry);
  }
  return CUDA_SUCCESS;
}

// Resource; answers u64 address, u64 size.
CUresult handle_cuGraphicsResourceGetMappedPointer_v2(Worker& worker, Request& request) {
  const GraphicsEntry* const entry = worker.graphics_resources.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUdeviceptr address = 0;
  size_t bytes = 0;
  const CUresult result =
      worker.driver.cuGraphicsResourceGetMappedPointer_v2(&address, &bytes, entry->resource);
  request.out->put<u64>(address);
  request.out->put<u64>(bytes);
  return result;
}

CUresult handle_cuGraphicsSubResourceGetMappedArray(Worker& worker, Request& request) {
  GraphicsEntry* const entry = worker.graphics_resources.find(request.in.get<wire::Handle>());
  const u32 index = request.in.get<u32>();
  const u32 level = request.in.get<u32>();
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUarray array = nullptr;
  const CUresult result =
      worker.driver.cuGraphicsSubResourceGetMappedArray(&array, entry->resource, index, level);
  return result != CUDA_SUCCESS ? result : answer_array(worker.arrays, request, *entry, array);
}

CUresult handle_cuGraphicsResourceGetMappedMipmappedArray(Worker& worker, Request& request) {
  GraphicsEntry* const entry = worker.graphics_resources.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (worker.driver.cuGraphicsResourceGetMappedMipmappedArray == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmipmappedArray array = nullptr;
  const CUresult result = worker.driver.cuGraphicsResourceGetMappedMipmappedArray(&array, entry->resource);
  return result != CUDA_SUCCESS ? result : answer_array(worker.mipmapped_arrays, request, *entry, array);
}

CUresult handle_cuGraphicsResourceSetMapFlags_v2(Worker& worker, Request& request) {
  const GraphicsEntry* const entry = worker.graphics_resources.find(request.in.get<wire::Handle>());
  const u32 flags = request.in.get<u32>();
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return worker.driver.cuGraphicsResourceSetMapFlags_v2(entry->resource, flags);
}

// u32 context of OpenGL, u32 which of its devices; answers an array of indices of the session's devices.
CUresult handle_cuGLGetDevices_v2(Worker& worker, Request& request) {
  const u32 opengl_context = request.in.get<u32>();
  const u32 which = request.in.get<u32>();
  request.in.finish();
  if (worker.driver.cuGLGetDevices_v2 == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  if (!use_opengl(worker, opengl_context)) return CUDA_ERROR_INVALID_GRAPHICS_CONTEXT;
  std::array<CUdevice, kMostDevices> devices{};
  u32 count = 0;
  const CUresult result = worker.driver.cuGLGetDevices_v2(&count, devices.data(), kMostDevices, which);
  if (result != CUDA_SUCCESS) return result;
  std::vector<u32> ours;  // others are of no concern to this tenant
  for (u32 i = 0; i < std::min(count, kMostDevices); ++i) {
    const auto found = std::ranges::find(worker.devices, devices[i]);
    if (found != worker.devices.end()) ours.push_back(static_cast<u32>(found - worker.devices.begin()));
  }
  request.out->put_array(ours.data(), ours.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
