// Texture and surface objects: the resource description names arrays by their wire handles.
#include "hostd/worker/worker.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// Reads a description with handles where the driver has pointers, and puts the driver's pointers there.
CUresult read_resource(Worker& worker, Request& request, CUDA_RESOURCE_DESC& resource) {
  resource = request.in.get<CUDA_RESOURCE_DESC>();
  switch (resource.resType) {
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

CUresult handle_cuTexObjectCreate(Worker& worker, Request& request) {
  if (worker.driver.cuTexObjectCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUDA_RESOURCE_DESC resource{};
  const CUresult found = read_resource(worker, request, resource);
  const auto texture = request.in.get<CUDA_TEXTURE_DESC>();
  const bool has_view = request.in.get_enum<u32>(1) != 0;
  const auto view = request.in.get<CUDA_RESOURCE_VIEW_DESC>();
  request.in.finish();
  if (found != CUDA_SUCCESS) return found;
  CUtexObject object = 0;
  const CUresult result =
      worker.driver.cuTexObjectCreate(&object, &resource, &texture, has_view ? &view : nullptr);
  if (result == CUDA_SUCCESS) request.out->put<u64>(object);
  return result;
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
  if (result == CUDA_SUCCESS) request.out->put<u64>(object);
  return result;
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
