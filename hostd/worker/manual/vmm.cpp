// Virtual memory management. Physical blocks are cleared when a device may write to them for the first time,
// which is the earliest moment at which they have an address.
#include <algorithm>
#include <map>

#include "hostd/worker/manual/context.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/manual/share.hpp"
#include "wire/cpp/device_info.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

struct Uncleared {
  u64 size = 0;
  CUmemGenericAllocationHandle block = 0;
};

// Mappings of blocks that have not been cleared, by address. Only the dispatcher's thread comes here.
std::map<u64, Uncleared>& uncleared() {
  static thread_local std::map<u64, Uncleared> mappings;
  return mappings;
}

// Driver handles of blocks that were created and never mapped, with their sizes.
std::unordered_map<u64, u64>& fresh_blocks() {
  static thread_local std::unordered_map<u64, u64> blocks;
  return blocks;
}

// Makes some context of the device current: one that the session has, else the primary one, which a session
// keeps once it has it. A program that only makes memory and passes it on has none.
bool enter_device(Worker& worker, CUdevice wanted) {
  bool entered = false;
  worker.contexts.each([&](wire::Handle, CUcontext context) {
    CUdevice device = 0;
    entered = entered || (worker.driver.cuCtxSetCurrent(context) == CUDA_SUCCESS &&
                          worker.driver.cuCtxGetDevice(&device) == CUDA_SUCCESS && device == wanted);
  });
  CUcontext primary = nullptr;
  return entered || (worker.driver.cuDevicePrimaryCtxRetain(&primary, wanted) == CUDA_SUCCESS &&
                     worker.driver.cuCtxSetCurrent(primary) == CUDA_SUCCESS);
}

// Clears a block through an address of its own, which goes again at once.
CUresult clear_aside(Worker& worker, CUmemGenericAllocationHandle block, u64 size) {
  CUmemAllocationProp properties{};
  CUresult result = worker.driver.cuMemGetAllocationPropertiesFromHandle(&properties, block);
  const KeepCurrent keep(worker.driver);
  if (result == CUDA_SUCCESS && !enter_device(worker, properties.location.id))
    result = CUDA_ERROR_INVALID_CONTEXT;
  CUdeviceptr address = 0;
  if (result == CUDA_SUCCESS) result = worker.driver.cuMemAddressReserve(&address, size, 0, 0, 0);
  if (result != CUDA_SUCCESS) return result;
  result = worker.driver.cuMemMap(address, size, 0, block, 0);
  if (result == CUDA_SUCCESS) {
    const CUmemAccessDesc access{properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    result = worker.driver.cuMemSetAccess(address, size, &access, 1);
    if (result == CUDA_SUCCESS) result = clear_memory(worker, address, size);
    const CUresult unmapped = worker.driver.cuMemUnmap(address, size);
    if (result == CUDA_SUCCESS) result = unmapped;
  }
  worker.driver.cuMemAddressFree(address, size);
  return result;
}

CUresult read_properties(Worker& worker, Request& request, CUmemAllocationProp& properties) {
  properties = request.in.get<CUmemAllocationProp>();
  return localize(worker, properties);
}

}  // namespace

CUresult clear_block(Worker& worker, CUmemGenericAllocationHandle block) {
  const auto waiting = std::find_if(uncleared().begin(), uncleared().end(),
                                    [&](const auto& mapping) { return mapping.second.block == block; });
  const auto fresh = fresh_blocks().find(block);
  if (waiting == uncleared().end() && fresh == fresh_blocks().end()) return CUDA_SUCCESS;
  const u64 size = fresh != fresh_blocks().end() ? fresh->second : waiting->second.size;
  if (const CUresult result = clear_aside(worker, block, size); result != CUDA_SUCCESS) return result;
  if (fresh != fresh_blocks().end()) fresh_blocks().erase(fresh);
  if (waiting != uncleared().end()) uncleared().erase(waiting);
  return CUDA_SUCCESS;
}

CUresult handle_cuMemAddressReserve(Worker& worker, Request& request) {
  if (worker.driver.cuMemAddressReserve == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto size = request.in.get<u64>();
  const auto alignment = request.in.get<u64>();
  const auto wanted = request.in.get<u64>();
  const auto flags = request.in.get<u64>();
  request.in.finish();
  CUdeviceptr address = 0;
  const CUresult result = worker.driver.cuMemAddressReserve(&address, size, alignment, wanted, flags);
  if (result == CUDA_SUCCESS) request.out->put<u64>(address);
  return result;
}

CUresult handle_cuMemAddressFree(Worker& worker, Request& request) {
  if (worker.driver.cuMemAddressFree == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto address = request.in.get<u64>();
  const auto size = request.in.get<u64>();
  request.in.finish();
  return worker.driver.cuMemAddressFree(address, size);
}

CUresult handle_cuMemCreate(Worker& worker, Request& request) {
  if (worker.driver.cuMemCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto size = request.in.get<u64>();
  const auto flags = request.in.get<u64>();
  CUmemAllocationProp properties{};
  const CUresult located = read_properties(worker, request, properties);
  request.in.finish();
  if (located != CUDA_SUCCESS) return located;
  CUmemGenericAllocationHandle block = 0;
  if (const CUresult result = worker.driver.cuMemCreate(&block, size, &properties, flags);
      result != CUDA_SUCCESS)
    return result;
  const wire::Handle handle = worker.mem_allocations.add(block);
  if (!handle) {
    worker.driver.cuMemRelease(block);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  // A number that the driver gives out again is another block from now on.
  for (auto& [address, mapping] : uncleared())
    if (mapping.block == block) mapping.block = 0;
  fresh_blocks()[block] = size;
  request.out->put(handle);
  return CUDA_SUCCESS;
}

CUresult handle_cuMemRelease(Worker& worker, Request& request) {
  if (worker.driver.cuMemRelease == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  const std::optional<CUmemGenericAllocationHandle> block = worker.mem_allocations.take(handle);
  if (!block) return CUDA_ERROR_INVALID_HANDLE;
  // A block that was retained keeps its driver handle; it counts as written from here on only if it is still
  // mapped.
  fresh_blocks().erase(*block);
  return worker.driver.cuMemRelease(*block);
}

CUresult handle_cuMemRetainAllocationHandle(Worker& worker, Request& request) {
  if (worker.driver.cuMemRetainAllocationHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto address = request.in.get<u64>();
  request.in.finish();
  CUmemGenericAllocationHandle block = 0;
  const CUresult result = worker.driver.cuMemRetainAllocationHandle(
      &block, reinterpret_cast<void*>(address));  // an address, never read
  if (result != CUDA_SUCCESS) return result;
  const wire::Handle handle = worker.mem_allocations.add(block);
  if (!handle) {
    worker.driver.cuMemRelease(block);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  request.out->put(handle);
  return CUDA_SUCCESS;
}

CUresult handle_cuMemMap(Worker& worker, Request& request) {
  if (worker.driver.cuMemMap == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto address = request.in.get<u64>();
  const auto size = request.in.get<u64>();
  const auto offset = request.in.get<u64>();
  const auto handle = request.in.get<wire::Handle>();
  const auto flags = request.in.get<u64>();
  request.in.finish();
  const CUmemGenericAllocationHandle* block = worker.mem_allocations.find(handle);
  if (block == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const CUresult result = worker.driver.cuMemMap(address, size, offset, *block, flags);
  if (result == CUDA_SUCCESS && fresh_blocks().contains(*block)) {
    uncleared()[address] = {size, *block};
    // The driver maps whole blocks only (the offset must be 0, cuda.h): this mapping clears all of it.
    fresh_blocks().erase(*block);
  }
  return result;
}

CUresult handle_cuMemUnmap(Worker& worker, Request& request) {
  if (worker.driver.cuMemUnmap == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto address = request.in.get<u64>();
  const auto size = request.in.get<u64>();
  request.in.finish();
  const CUresult result = worker.driver.cuMemUnmap(address, size);
  if (result == CUDA_SUCCESS) {
    std::map<u64, Uncleared>& waiting = uncleared();
    for (auto mapping = waiting.lower_bound(address);
         mapping != waiting.end() && mapping->first - address < size;)
      mapping = waiting.erase(mapping);
  }
  return result;
}

CUresult handle_cuMemSetAccess(Worker& worker, Request& request) {
  if (worker.driver.cuMemSetAccess == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto address = request.in.get<u64>();
  const auto size = request.in.get<u64>();
  std::vector<CUmemAccessDesc> access = request.in.get_array<CUmemAccessDesc>(wire::kMaxDevices);
  request.in.finish();
  CUdevice here = 0;
  const bool current = worker.driver.cuCtxGetDevice(&here) == CUDA_SUCCESS;
  bool writable = false;
  for (CUmemAccessDesc& each : access) {
    if (const CUresult result = localize(worker, each); result != CUDA_SUCCESS) return result;
    writable |= current && each.location.id == here && each.flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  }
  const CUresult result = worker.driver.cuMemSetAccess(address, size, access.data(), access.size());
  if (result != CUDA_SUCCESS || !writable) return result;
  std::map<u64, Uncleared>& waiting = uncleared();
  for (auto mapping = waiting.lower_bound(address);
       mapping != waiting.end() && mapping->first - address < size;) {
    if (const CUresult cleared = clear_memory(worker, mapping->first, mapping->second.size);
        cleared != CUDA_SUCCESS)
      return cleared;
    mapping = waiting.erase(mapping);
  }
  return CUDA_SUCCESS;
}

CUresult handle_cuMemGetAccess(Worker& worker, Request& request) {
  if (worker.driver.cuMemGetAccess == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto address = request.in.get<u64>();
  auto location = request.in.get<CUmemLocation>();
  request.in.finish();
  if (const CUresult result = localize(worker, location); result != CUDA_SUCCESS) return result;
  unsigned long long flags = 0;
  const CUresult result = worker.driver.cuMemGetAccess(&flags, &location, address);
  if (result == CUDA_SUCCESS) request.out->put<u64>(flags);
  return result;
}

CUresult handle_cuMemGetAllocationGranularity(Worker& worker, Request& request) {
  if (worker.driver.cuMemGetAllocationGranularity == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto option = request.in.get_enum<u32>(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  CUmemAllocationProp properties{};
  const CUresult located = read_properties(worker, request, properties);
  request.in.finish();
  if (located != CUDA_SUCCESS) return located;
  size_t granularity = 0;
  const CUresult result = worker.driver.cuMemGetAllocationGranularity(
      &granularity, &properties, static_cast<CUmemAllocationGranularity_flags>(option));
  if (result == CUDA_SUCCESS) request.out->put<u64>(granularity);
  return result;
}

CUresult handle_cuMemGetAllocationPropertiesFromHandle(Worker& worker, Request& request) {
  if (worker.driver.cuMemGetAllocationPropertiesFromHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  const CUmemGenericAllocationHandle* block = worker.mem_allocations.find(handle);
  if (block == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUmemAllocationProp properties{};
  const CUresult result = worker.driver.cuMemGetAllocationPropertiesFromHandle(&properties, *block);
  if (result != CUDA_SUCCESS) return result;
  properties.location.id = index_of_device(worker, properties.location.id);
  properties.win32HandleMetaData = nullptr;
  request.out->put(properties);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
