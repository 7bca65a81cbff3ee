// Device memory: allocated by the driver, cleared before the client learns its address.
#include "hostd/worker/manual/memory.hpp"

#include "hostd/worker/manual/share.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {

// A stream per context for clearing, by cuCtxGetId, which is never used twice: the stream of a destroyed
// context is never found again. Only the dispatcher's thread comes here.
CUresult clearing_stream(Worker& worker, CUstream& stream) {
  static thread_local std::unordered_map<u64, CUstream> streams;
  unsigned long long context = 0;
  if (const CUresult result = worker.driver.cuCtxGetId(nullptr, &context); result != CUDA_SUCCESS)
    return result;
  if (const auto found = streams.find(context); found != streams.end()) {
    stream = found->second;
    return CUDA_SUCCESS;
  }
  const CUresult result = worker.driver.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
  if (result == CUDA_SUCCESS) streams.emplace(context, stream);
  return result;
}

CUresult clear_memory(Worker& worker, CUdeviceptr address, u64 bytes) {
  if (!worker.caps.scrub) return CUDA_SUCCESS;
  CUstream stream = nullptr;
  CUresult result = clearing_stream(worker, stream);
  if (result == CUDA_SUCCESS) result = worker.driver.cuMemsetD8Async(address, 0, bytes, stream);
  if (result == CUDA_SUCCESS) result = worker.driver.cuStreamSynchronize(stream);
  return result;
}

bool find_device(const Worker& worker, i32 index, CUdevice& device) {
  if (index < 0 || static_cast<u64>(index) >= worker.devices.size()) return false;
  device = worker.devices[static_cast<u64>(index)];
  return true;
}

i32 index_of_device(const Worker& worker, CUdevice device) {
  for (u64 i = 0; i < worker.devices.size(); ++i)
    if (worker.devices[i] == device) return static_cast<i32>(i);
  return -1;
}

bool any_capturing(Worker& worker) {
  bool capturing = false;
  worker.streams.each(
      [&](wire::Handle, const StreamEntry& entry) { capturing = capturing || entry.capturing; });
  return capturing;
}

bool is_managed(const Worker& worker, CUdeviceptr address) {
  unsigned int managed = 0;
  const CUresult result =
      worker.driver.cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address);
  return result == CUDA_SUCCESS && managed != 0;
}

CUresult localize(const Worker& worker, CUmemLocation& location) {
  if (wire::number_in(location.type) != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  CUdevice device = 0;
  if (!find_device(worker, location.id, device)) return CUDA_ERROR_INVALID_DEVICE;
  location.id = device;
  return CUDA_SUCCESS;
}

CUresult localize(const Worker& worker, CUmemAccessDesc& access) {
  const u32 flags = wire::number_in(access.flags);
  if (flags != CU_MEM_ACCESS_FLAGS_PROT_NONE && flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
      flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
    return CUDA_ERROR_INVALID_VALUE;
  return localize(worker, access.location);
}

namespace {

bool known_memory(const CUmemAllocationType& type, const CUmemAllocationHandleType& shared_as) {
  constexpr u32 kHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_WIN32 |
                               CU_MEM_HANDLE_TYPE_WIN32_KMT | CU_MEM_HANDLE_TYPE_FABRIC;
  const u32 number = wire::number_in(type);
  return (number == CU_MEM_ALLOCATION_TYPE_PINNED || number == CU_MEM_ALLOCATION_TYPE_MANAGED) &&
         (wire::number_in(shared_as) & ~kHandleTypes) == 0;
}

}  // namespace

CUresult localize(const Worker& worker, CUmemAllocationProp& properties) {
  properties.win32HandleMetaData = nullptr;
  if (!known_memory(properties.type, properties.requestedHandleTypes)) return CUDA_ERROR_INVALID_VALUE;
  return localize(worker, properties.location);
}

CUresult localize(const Worker& worker, CUmemPoolProps& properties) {
  properties.win32SecurityAttributes = nullptr;
  if (!known_memory(properties.allocType, properties.handleTypes)) return CUDA_ERROR_INVALID_VALUE;
  return localize(worker, properties.location);
}

CUresult handle_cuMemAlloc_v2(Worker& worker, Request& request) {
  const auto bytes = request.in.get<u64>();
  request.in.finish();
  CUdeviceptr address = 0;
  CUresult allocated = worker.driver.cuMemAlloc_v2(&address, bytes);
  // Pools give their memory up when the program synchronizes, of which the driver hears nothing otherwise:
  // the client waits on its words.
  if (allocated == CUDA_ERROR_OUT_OF_MEMORY && !any_capturing(worker) &&
      worker.driver.cuCtxSynchronize() == CUDA_SUCCESS)
    allocated = worker.driver.cuMemAlloc_v2(&address, bytes);
  if (allocated != CUDA_SUCCESS) return allocated;
  if (const CUresult result = clear_memory(worker, address, bytes); result != CUDA_SUCCESS) {
    worker.driver.cuMemFree_v2(address);
    return result;
  }
  request.out->put<u64>(address);
  return CUDA_SUCCESS;
}

CUresult handle_cuMemFree_v2(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  request.in.finish();
  forget_shared_memory(worker, address);
  return worker.driver.cuMemFree_v2(address);
}

CUresult handle_cuMemGetAddressRange_v2(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  request.in.finish();
  CUdeviceptr base = 0;
  size_t size = 0;
  const CUresult result = worker.driver.cuMemGetAddressRange_v2(&base, &size, address);
  if (result != CUDA_SUCCESS) return result;
  request.out->put<u64>(base);
  request.out->put<u64>(size);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
