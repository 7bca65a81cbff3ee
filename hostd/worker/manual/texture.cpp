// Texture and surface objects: the resource description names arrays by their wire handles.
#include "hostd/worker/manual/texture.hpp"

#include <unordered_map>

#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// The objects alive, and the handle index of the context that each was made in. Names that no object has are
// refused here: what the driver does with them is not documented.
std::unordered_map<u64, u32> g_textures;
std::unordered_map<u64, u32> g_surfaces;

template <typename Destroy>
void destroy_owned(std::unordered_map<u64, u32>& objects, u32 owner, Destroy destroy) {
  std::erase_if(objects, [&](const auto& each) {
    if (each.second != owner) return false;
    destroy(each.first);
    return true;
  });
}

// Reads a description with handles where the driver has pointers, and puts the driver's pointers there.
CUresult read_resource(Worker& worker, Request& request, CUDA_RESOURCE_DESC& resource) {
  resource = request.in.get<CUDA_RESOURCE_DESC>();
  switch (wire::number_in(resource.resType)) {
    case CU_RESOURCE_TYPE_ARRAY: {
      const CUarray* array =
          worker.arrays.find(wire::Handle{reinterpret_cast<u64>(resource.res.array.hArray)});
      if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
      resource.res.array.hArray = *array;
      return CUDA_SUCCESS;
    }
    case CU_RESOURCE_TYPE_MIPMAPPED_ARRAY: {
      const CUmipmappedArray* array = worker.mipmapped_arrays.find(
          wire::Handle{reinterpret_cast<u64>(resource.res.mipmap.hMipmappedArray)});
      if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
      resource.res.mipmap.hMipmappedArray = *array;
      return CUDA_SUCCESS;
    }
    case CU_RESOURCE_TYPE_LINEAR:
    case CU_RESOURCE_TYPE_PITCH2D:
      return CUDA_SUCCESS;
  }
  throw wire::ProtocolError("unknown resource type");
}

// Numbers that are none of an enum's are refused here: the driver would trust them.
bool known_sampling(const CUDA_TEXTURE_DESC& texture, const CUDA_RESOURCE_VIEW_DESC& view) {
  for (const CUaddress_mode& mode : texture.addressMode)
    if (wire::number_in(mode) > CU_TR_ADDRESS_MODE_BORDER) return false;
  return wire::number_in(texture.filterMode) <= CU_TR_FILTER_MODE_LINEAR &&
         wire::number_in(texture.mipmapFilterMode) <= CU_TR_FILTER_MODE_LINEAR &&
         wire::number_in(view.format) <= CU_RES_VIEW_FORMAT_UNSIGNED_BC7;
}

template <typename Table, typename Object>
wire::Handle name_of(Table& table, Object object) {
  wire::Handle found;
  table.each([&](wire::Handle handle, Object& each) {
    if (each == object) found = handle;
  });
  return found;
}

// The other way round, for the descriptions that the driver hands back.
CUresult answer_resource(Worker& worker, Request& request, CUDA_RESOURCE_DESC resource) {
  if (resource.resType == CU_RESOURCE_TYPE_ARRAY) {
    const wire::Handle handle = name_of(worker.arrays, resource.res.array.hArray);
    resource.res.array.hArray = reinterpret_cast<CUarray>(handle.bits);
  } else if (resource.resType == CU_RESOURCE_TYPE_MIPMAPPED_ARRAY) {
    const wire::Handle handle = name_of(worker.mipmapped_arrays, resource.res.mipmap.hMipmappedArray);
    resource.res.mipmap.hMipmappedArray = reinterpret_cast<CUmipmappedArray>(handle.bits);
  }
  request.out->put(resource);
  return CUDA_SUCCESS;
}

}  // namespace

void destroy_textures(Worker& worker, u32 owner) {
  destroy_owned(g_textures, owner, [&](u64 object) { worker.driver.cuTexObjectDestroy(object); });
  destroy_owned(g_surfaces, owner, [&](u64 object) { worker.driver.cuSurfObjectDestroy(object); });
}

CUresult handle_cuTexObjectCreate(Worker& worker, Request& request) {
  if (worker.driver.cuTexObjectCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUDA_RESOURCE_DESC resource{};
  const CUresult found = read_resource(worker, request, resource);
  const auto texture = request.in.get<CUDA_TEXTURE_DESC>();
  const bool has_view = request.in.get_enum<u32>(1) != 0;
  const auto view = request.in.get<CUDA_RESOURCE_VIEW_DESC>();
  request.in.finish();
  if (found != CUDA_SUCCESS) return found;
  if (!known_sampling(texture, view)) return CUDA_ERROR_INVALID_VALUE;
  CUtexObject object = 0;
  const CUresult result =
      worker.driver.cuTexObjectCreate(&object, &resource, &texture, has_view ? &view : nullptr);
  if (result != CUDA_SUCCESS) return result;
  g_textures[object] = g_owner;
  request.out->put<u64>(object);
  return CUDA_SUCCESS;
}

// u64 object.
CUresult handle_cuTexObjectDestroy(Worker& worker, Request& request) {
  const auto object = request.in.get<u64>();
  request.in.finish();
  return g_textures.erase(object) != 0 ? worker.driver.cuTexObjectDestroy(object) : CUDA_ERROR_INVALID_VALUE;
}

CUresult handle_cuTexObjectGetResourceDesc(Worker& worker, Request& request) {
  if (worker.driver.cuTexObjectGetResourceDesc == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto object = request.in.get<u64>();
  request.in.finish();
  CUDA_RESOURCE_DESC resource{};
  const CUresult result = worker.driver.cuTexObjectGetResourceDesc(&resource, object);
  return result != CUDA_SUCCESS ? result : answer_resource(worker, request, resource);
}

CUresult handle_cuSurfObjectCreate(Worker& worker, Request& request) {
  if (worker.driver.cuSurfObjectCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUDA_RESOURCE_DESC resource{};
  const CUresult found = read_resource(worker, request, resource);
  request.in.finish();
  if (found != CUDA_SUCCESS) return found;
  CUsurfObject object = 0;
  const CUresult result = worker.driver.cuSurfObjectCreate(&object, &resource);
  if (result != CUDA_SUCCESS) return result;
  g_surfaces[object] = g_owner;
  request.out->put<u64>(object);
  return CUDA_SUCCESS;
}

// u64 object.
CUresult handle_cuSurfObjectDestroy(Worker& worker, Request& request) {
  const auto object = request.in.get<u64>();
  request.in.finish();
  return g_surfaces.erase(object) != 0 ? worker.driver.cuSurfObjectDestroy(object) : CUDA_ERROR_INVALID_VALUE;
}

CUresult handle_cuSurfObjectGetResourceDesc(Worker& worker, Request& request) {
  if (worker.driver.cuSurfObjectGetResourceDesc == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto object = request.in.get<u64>();
  request.in.finish();
  CUDA_RESOURCE_DESC resource{};
  const CUresult result = worker.driver.cuSurfObjectGetResourceDesc(&resource, object);
  return result != CUDA_SUCCESS ? result : answer_resource(worker, request, resource);
}

}  // namespace gpupool::worker
