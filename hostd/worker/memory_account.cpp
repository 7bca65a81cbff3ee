#include "hostd/worker/memory_account.hpp"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace gpupool::worker {
namespace {

constexpr u64 kGranule = 512;

struct Allocation {
  u64 bytes = 0;
  u32 device = 0;               // the session's index
  CUcontext context = nullptr;  // goes with it; null: only by being freed
};

struct Block {
  u64 bytes = 0;
  u32 device = 0;
  u64 holds = 0;  // handles and mappings
};

// One a process, as the functions in the driver's table have no argument to carry it.
struct Account {
  DriverApi real{};
  UsagePage* page = nullptr;
  std::vector<CUdevice> devices;
  std::unordered_map<u64, Allocation> allocations;  // by address, or by the array's handle
  std::unordered_map<CUmemGenericAllocationHandle, Block> blocks;
  std::map<CUdeviceptr, std::pair<u64, CUmemGenericAllocationHandle>> mappings;  // address -> size, block

  void add(u32 device, u64 bytes) {
    page->device[device].memory_bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
  void subtract(u32 device, u64 bytes) {
    page->device[device].memory_bytes.fetch_sub(bytes, std::memory_order_relaxed);
  }

  // The session's index of a device, or of the current context's; 0 for one that is none of the session's.
  u32 index_of(CUdevice device) const {
    const auto found = std::find(devices.begin(), devices.end(), device);
    const auto index = static_cast<u32>(found == devices.end() ? 0 : found - devices.begin());
    return std::min(index, wire::kMaxDevices - 1);
  }
  u32 current_index() const {
    CUdevice device = 0;
    return real.cuCtxGetDevice(&device) == CUDA_SUCCESS ? index_of(device) : 0;
  }

  void allocated(u64 key, u64 bytes, bool of_context) {
    Allocation one{(bytes + kGranule - 1) / kGranule * kGranule, current_index(), nullptr};
    if (of_context) real.cuCtxGetCurrent(&one.context);
    freed(key);  // an address that the driver freed by itself (with a graph, a pool) and gives out again
    add(one.device, one.bytes);
    allocations[key] = one;
  }
  void freed(u64 key) {
    const auto found = allocations.find(key);
    if (found == allocations.end()) return;
    subtract(found->second.device, found->second.bytes);
    allocations.erase(found);
  }
  void context_gone(CUcontext context) {
    for (auto one = allocations.begin(); one != allocations.end();) {
      if (one->second.context != context) {
        ++one;
        continue;
      }
      subtract(one->second.device, one->second.bytes);
      one = allocations.erase(one);
    }
  }

  void hold(CUmemGenericAllocationHandle block) {
    if (const auto found = blocks.find(block); found != blocks.end()) ++found->second.holds;
  }
  void let_go(CUmemGenericAllocationHandle block) {
    const auto found = blocks.find(block);
    if (found == blocks.end() || --found->second.holds > 0) return;
    subtract(found->second.device, found->second.bytes);
    blocks.erase(found);
  }
};

Account& account() {
  static Account one;
  return one;
}

// The bytes that one element of an array has. Block-compressed formats are counted as if they were not.
u64 element_bytes(CUarray_format format, unsigned int channels) {
  switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
      return channels;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return u64{4} * channels;
    default:
      return u64{2} * channels;
  }
}

u64 array_bytes(const CUDA_ARRAY3D_DESCRIPTOR& of, u32 level) {
  const u64 width = std::max<u64>(1, of.Width >> level);
  const u64 height = std::max<u64>(1, of.Height >> level);
  const bool layered = (of.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
  const u64 depth = std::max<u64>(1, layered ? of.Depth : of.Depth >> level);
  return width * height * depth * element_bytes(of.Format, of.NumChannels);
}

u64 key_of(const void* handle) {
  return reinterpret_cast<u64>(handle);
}

CUresult mem_alloc(CUdeviceptr* address, size_t bytes) {
  const CUresult result = account().real.cuMemAlloc_v2(address, bytes);
  if (result == CUDA_SUCCESS) account().allocated(*address, bytes, true);
  return result;
}

CUresult mem_alloc_pitch(CUdeviceptr* address, size_t* pitch, size_t width, size_t height,
                         unsigned int size) {
  const CUresult result = account().real.cuMemAllocPitch_v2(address, pitch, width, height, size);
  if (result == CUDA_SUCCESS) account().allocated(*address, *pitch * height, true);
  return result;
}

CUresult mem_alloc_managed(CUdeviceptr* address, size_t bytes, unsigned int flags) {
  const CUresult result = account().real.cuMemAllocManaged(address, bytes, flags);
  if (result == CUDA_SUCCESS) account().allocated(*address, bytes, true);
  return result;
}

CUresult mem_free(CUdeviceptr address) {
  const CUresult result = account().real.cuMemFree_v2(address);
  if (result == CUDA_SUCCESS) account().freed(address);
  return result;
}

CUresult mem_alloc_async(CUdeviceptr* address, size_t bytes, CUstream stream) {
  const CUresult result = account().real.cuMemAllocAsync(address, bytes, stream);
  if (result == CUDA_SUCCESS) account().allocated(*address, bytes, false);
  return result;
}

CUresult mem_alloc_from_pool(CUdeviceptr* address, size_t bytes, CUmemoryPool pool, CUstream stream) {
  const CUresult result = account().real.cuMemAllocFromPoolAsync(address, bytes, pool, stream);
  if (result == CUDA_SUCCESS) account().allocated(*address, bytes, false);
  return result;
}

CUresult mem_free_async(CUdeviceptr address, CUstream stream) {
  const CUresult result = account().real.cuMemFreeAsync(address, stream);
  if (result == CUDA_SUCCESS) account().freed(address);
  return result;
}

CUresult mem_create(CUmemGenericAllocationHandle* block, size_t bytes, const CUmemAllocationProp* properties,
                    unsigned long long flags) {
  const CUresult result = account().real.cuMemCreate(block, bytes, properties, flags);
  if (result != CUDA_SUCCESS || properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return result;
  const u32 device = account().index_of(properties->location.id);
  account().blocks[*block] = Block{bytes, device, 1};
  account().add(device, bytes);
  return result;
}

CUresult mem_retain(CUmemGenericAllocationHandle* block, void* address) {
  const CUresult result = account().real.cuMemRetainAllocationHandle(block, address);
  if (result == CUDA_SUCCESS) account().hold(*block);
  return result;
}

CUresult mem_release(CUmemGenericAllocationHandle block) {
  const CUresult result = account().real.cuMemRelease(block);
  if (result == CUDA_SUCCESS) account().let_go(block);
  return result;
}

CUresult mem_map(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle block,
                 unsigned long long flags) {
  const CUresult result = account().real.cuMemMap(address, size, offset, block, flags);
  if (result != CUDA_SUCCESS) return result;
  account().hold(block);
  account().mappings[address] = {size, block};
  return result;
}

CUresult mem_unmap(CUdeviceptr address, size_t size) {
  const CUresult result = account().real.cuMemUnmap(address, size);
  if (result != CUDA_SUCCESS) return result;
  auto& mappings = account().mappings;
  for (auto one = mappings.lower_bound(address); one != mappings.end() && one->first - address < size;) {
    account().let_go(one->second.second);
    one = mappings.erase(one);
  }
  return result;
}

CUresult array_create(CUarray* array, const CUDA_ARRAY_DESCRIPTOR* of) {
  const CUresult result = account().real.cuArrayCreate_v2(array, of);
  if (result != CUDA_SUCCESS) return result;
  const u64 bytes = std::max<u64>(1, of->Height) * of->Width * element_bytes(of->Format, of->NumChannels);
  account().allocated(key_of(*array), bytes, true);
  return result;
}

CUresult array_3d_create(CUarray* array, const CUDA_ARRAY3D_DESCRIPTOR* of) {
  const CUresult result = account().real.cuArray3DCreate_v2(array, of);
  if (result == CUDA_SUCCESS) account().allocated(key_of(*array), array_bytes(*of, 0), true);
  return result;
}

CUresult array_destroy(CUarray array) {
  const CUresult result = account().real.cuArrayDestroy(array);
  if (result == CUDA_SUCCESS) account().freed(key_of(array));
  return result;
}

CUresult mipmapped_create(CUmipmappedArray* array, const CUDA_ARRAY3D_DESCRIPTOR* of, unsigned int levels) {
  const CUresult result = account().real.cuMipmappedArrayCreate(array, of, levels);
  if (result != CUDA_SUCCESS) return result;
  u64 bytes = 0;
  for (u32 level = 0; level < std::min(levels, 32u); ++level) bytes += array_bytes(*of, level);
  account().allocated(key_of(*array), bytes, true);
  return result;
}

CUresult mipmapped_destroy(CUmipmappedArray array) {
  const CUresult result = account().real.cuMipmappedArrayDestroy(array);
  if (result == CUDA_SUCCESS) account().freed(key_of(array));
  return result;
}

CUresult context_destroy(CUcontext context) {
  const CUresult result = account().real.cuCtxDestroy_v2(context);
  if (result == CUDA_SUCCESS) account().context_gone(context);
  return result;
}

// A function that the driver lacks stays null: handlers test for that.
template <typename F>
void replace(F& entry, F ours) {
  if (entry != nullptr) entry = ours;
}

}  // namespace

void account_memory(Worker& worker) {
  Account& one = account();
  DriverApi& driver = worker.driver;
  one.real = driver;
  one.page = worker.usage;
  one.devices = worker.devices;
  replace(driver.cuMemAlloc_v2, &mem_alloc);
  replace(driver.cuMemAllocPitch_v2, &mem_alloc_pitch);
  replace(driver.cuMemAllocManaged, &mem_alloc_managed);
  replace(driver.cuMemFree_v2, &mem_free);
  replace(driver.cuMemAllocAsync, &mem_alloc_async);
  replace(driver.cuMemAllocFromPoolAsync, &mem_alloc_from_pool);
  replace(driver.cuMemFreeAsync, &mem_free_async);
  replace(driver.cuMemCreate, &mem_create);
  replace(driver.cuMemRetainAllocationHandle, &mem_retain);
  replace(driver.cuMemRelease, &mem_release);
  replace(driver.cuMemMap, &mem_map);
  replace(driver.cuMemUnmap, &mem_unmap);
  replace(driver.cuArrayCreate_v2, &array_create);
  replace(driver.cuArray3DCreate_v2, &array_3d_create);
  replace(driver.cuArrayDestroy, &array_destroy);
  replace(driver.cuMipmappedArrayCreate, &mipmapped_create);
  replace(driver.cuMipmappedArrayDestroy, &mipmapped_destroy);
  replace(driver.cuCtxDestroy_v2, &context_destroy);
}

}  // namespace gpupool::worker
