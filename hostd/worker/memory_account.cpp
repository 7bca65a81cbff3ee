#include "hostd/worker/memory_account.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <unordered_map>

#include "hostd/worker/array_bytes.hpp"
#include "hostd/worker/image_memory.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/memory_ledger.hpp"
#include "hostd/worker/ordered_memory.hpp"

namespace gpupool::worker {
namespace {

// Bytes that have been charged, given back with the last who knows of them.
struct Charge {
  Charge(u32 device_index, u64 size) : device(device_index), bytes(size) {}
  ~Charge() { memory_ledger().release(device, bytes); }
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;
  u32 device;
  u64 bytes;
};

struct Block {
  std::shared_ptr<Charge> charge;
  u64 holds = 0;  // handles and mappings
};

using TokenBytes = std::array<u8, sizeof(wire::ShareToken)>;

TokenBytes bytes_of(const wire::ShareToken& token) {
  TokenBytes bytes{};
  std::copy(std::begin(token.bytes), std::end(token.bytes), bytes.begin());
  return bytes;
}

// Physical memory, which is there as long as anything holds it.
struct Blocks {
  std::unordered_map<CUmemGenericAllocationHandle, Block> blocks;
  std::map<TokenBytes, std::shared_ptr<Charge>> exported;
  std::map<CUdeviceptr, std::pair<u64, CUmemGenericAllocationHandle>> mappings;  // address -> size, block

  void hold(CUmemGenericAllocationHandle block) {
    if (const auto found = blocks.find(block); found != blocks.end()) ++found->second.holds;
  }
  void let_go(CUmemGenericAllocationHandle block) {
    const auto found = blocks.find(block);
    if (found == blocks.end() || --found->second.holds > 0) return;
    blocks.erase(found);
  }
};

Blocks& physical() {
  static auto& one = *new Blocks();
  return one;
}

const DriverApi& real() {
  return memory_ledger().driver();
}

CUcontext current_context() {
  CUcontext context = nullptr;
  return real().cuCtxGetCurrent(&context) == CUDA_SUCCESS ? context : nullptr;
}

// Charges, asks the driver, and keeps what it gave under key(), or gives the bytes back.
template <typename Ask, typename Key>
CUresult counted(u64 bytes, Ask ask, Key key, bool of_context = true) {
  MemoryLedger& ledger = memory_ledger();
  const u32 device = ledger.current_index();
  const u64 size = in_granules(bytes);
  if (!ledger.charge(device, size)) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = ask();
  if (result != CUDA_SUCCESS) {
    ledger.release(device, size);
    return result;
  }
  ledger.keep(key(), device, size, of_context ? current_context() : nullptr);
  return result;
}

u64 key_of(const void* handle) {
  return reinterpret_cast<u64>(handle);
}

CUresult mem_alloc(CUdeviceptr* address, size_t bytes) {
  return counted(bytes, [&] { return real().cuMemAlloc_v2(address, bytes); }, [&] { return *address; });
}

CUresult mem_free(CUdeviceptr address) {
  const CUresult result = real().cuMemFree_v2(address);
  if (result != CUDA_SUCCESS) return result;
  if (!memory_ledger().forget(address) && !ordered_memory().freed(address)) ordered_memory().settle_graphs();
  return result;
}

CUresult mem_get_info(size_t* available, size_t* total) {
  MemoryLedger& ledger = memory_ledger();
  const u32 device = ledger.current_index();
  ordered_memory().refresh(device, kFreePatienceNs);
  const CUresult result = real().cuMemGetInfo_v2(available, total);
  if (result != CUDA_SUCCESS) return result;
  const u64 limit = ledger.vgpu(device).limit_bytes();
  if (limit == 0 || limit >= *total) return result;
  const u64 used = ledger.vgpu(device).all_bytes();
  *total = limit;
  *available = std::min<u64>(*available, limit - std::min(used, limit));
  return result;
}

CUresult device_total_mem(size_t* bytes, CUdevice device) {
  const CUresult result = real().cuDeviceTotalMem_v2(bytes, device);
  if (result != CUDA_SUCCESS) return result;
  const u64 limit = memory_ledger().vgpu(memory_ledger().index_of(device)).limit_bytes();
  if (limit != 0) *bytes = std::min<u64>(*bytes, limit);
  return result;
}

CUresult mem_alloc_async(CUdeviceptr* address, size_t bytes, CUstream stream) {
  return ordered_memory().allocate(address, bytes, nullptr, stream);
}

CUresult mem_alloc_from_pool(CUdeviceptr* address, size_t bytes, CUmemoryPool pool, CUstream stream) {
  return ordered_memory().allocate(address, bytes, pool, stream);
}

CUresult mem_free_async(CUdeviceptr address, CUstream stream) {
  const CUresult result = real().cuMemFreeAsync(address, stream);
  if (result != CUDA_SUCCESS || ordered_memory().freed(address)) return result;
  const u64 bytes = memory_ledger().bytes_of(address);
  if (memory_ledger().forget(address))
    ordered_memory().lingers(bytes);
  else
    ordered_memory().settle_graphs();
  return result;
}

CUresult stream_destroy(CUstream stream) {
  ordered_memory().stream_ends(stream);
  return real().cuStreamDestroy_v2(stream);
}

CUresult pool_create(CUmemoryPool* pool, const CUmemPoolProps* properties) {
  const CUresult result = real().cuMemPoolCreate(pool, properties);
  if (result == CUDA_SUCCESS) ordered_memory().pool_made(*pool, properties->location.id);
  return result;
}

CUresult pool_destroy(CUmemoryPool pool) {
  ordered_memory().pool_ends(pool);
  const CUresult result = real().cuMemPoolDestroy(pool);
  if (result == CUDA_SUCCESS) ordered_memory().pool_ended(pool);
  return result;
}

CUresult pool_trim(CUmemoryPool pool, size_t keep) {
  const CUresult result = real().cuMemPoolTrimTo(pool, keep);
  ordered_memory().refresh(memory_ledger().current_index());
  return result;
}

CUresult graph_add_allocation(CUgraphNode* node, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              CUDA_MEM_ALLOC_NODE_PARAMS* params) {
  ordered_memory().graphs_allocate();
  return real().cuGraphAddMemAllocNode(node, graph, dependencies, count, params);
}

CUresult graph_instantiate(CUgraphExec* exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  return ordered_memory().instantiate(exec, graph, params);
}

CUresult graph_launch(CUgraphExec exec, CUstream stream) {
  return ordered_memory().run_graph(exec, stream, real().cuGraphLaunch);
}

CUresult graph_upload(CUgraphExec exec, CUstream stream) {
  return ordered_memory().run_graph(exec, stream, real().cuGraphUpload);
}

CUresult graph_destroy(CUgraphExec exec) {
  const CUresult result = real().cuGraphExecDestroy(exec);
  if (result == CUDA_SUCCESS) ordered_memory().graph_ended(exec);
  return result;
}

CUresult graph_trim(CUdevice device) {
  const CUresult result = real().cuDeviceGraphMemTrim(device);
  ordered_memory().settle_graphs();
  return result;
}

CUresult mem_create(CUmemGenericAllocationHandle* block, size_t bytes, const CUmemAllocationProp* properties,
                    unsigned long long flags) {
  if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
    return real().cuMemCreate(block, bytes, properties, flags);
  MemoryLedger& ledger = memory_ledger();
  const u32 device = ledger.index_of(properties->location.id);
  if (!ledger.charge(device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = real().cuMemCreate(block, bytes, properties, flags);
  if (result == CUDA_SUCCESS)
    physical().blocks[*block] = Block{std::make_shared<Charge>(device, bytes), 1};
  else
    ledger.release(device, bytes);
  return result;
}

CUresult mem_retain(CUmemGenericAllocationHandle* block, void* address) {
  const CUresult result = real().cuMemRetainAllocationHandle(block, address);
  if (result == CUDA_SUCCESS) physical().hold(*block);
  return result;
}

CUresult mem_release(CUmemGenericAllocationHandle block) {
  const CUresult result = real().cuMemRelease(block);
  if (result == CUDA_SUCCESS) physical().let_go(block);
  return result;
}

CUresult mem_map(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle block,
                 unsigned long long flags) {
  const CUresult result = real().cuMemMap(address, size, offset, block, flags);
  if (result != CUDA_SUCCESS) return result;
  physical().hold(block);
  physical().mappings[address] = {size, block};
  return result;
}

CUresult mem_unmap(CUdeviceptr address, size_t size) {
  const CUresult result = real().cuMemUnmap(address, size);
  if (result != CUDA_SUCCESS) return result;
  auto& mappings = physical().mappings;
  for (auto one = mappings.lower_bound(address); one != mappings.end() && one->first - address < size;) {
    physical().let_go(one->second.second);
    one = mappings.erase(one);
  }
  return result;
}

CUresult array_create(CUarray* array, const CUDA_ARRAY_DESCRIPTOR* of) {
  CUDA_ARRAY3D_DESCRIPTOR shape{};
  shape.Width = of->Width;
  shape.Height = of->Height;
  shape.Format = of->Format;
  shape.NumChannels = of->NumChannels;
  return counted(
      array_bytes(shape), [&] { return real().cuArrayCreate_v2(array, of); }, [&] { return key_of(*array); });
}

CUresult array_3d_create(CUarray* array, const CUDA_ARRAY3D_DESCRIPTOR* of) {
  return counted(
      array_bytes(*of), [&] { return real().cuArray3DCreate_v2(array, of); }, [&] { return key_of(*array); });
}

CUresult array_destroy(CUarray array) {
  const CUresult result = real().cuArrayDestroy(array);
  if (result == CUDA_SUCCESS) memory_ledger().forget(key_of(array));
  return result;
}

CUresult mipmapped_create(CUmipmappedArray* array, const CUDA_ARRAY3D_DESCRIPTOR* of, unsigned int levels) {
  return counted(
      mipmapped_bytes(*of, levels), [&] { return real().cuMipmappedArrayCreate(array, of, levels); },
      [&] { return key_of(*array); });
}

CUresult mipmapped_destroy(CUmipmappedArray array) {
  const CUresult result = real().cuMipmappedArrayDestroy(array);
  if (result == CUDA_SUCCESS) memory_ledger().forget(key_of(array));
  return result;
}

// What kernels may take of the device beyond what a context begins with: their heap, the buffer of printf,
// and stacks for as many threads as the device runs.
u64 limit_unit(CUlimit limit, u32 device) {
  if (limit == CU_LIMIT_MALLOC_HEAP_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE) return 1;
  if (limit != CU_LIMIT_STACK_SIZE) return 0;
  const CUdevice of = memory_ledger().worker().devices[device];
  int processors = 0;
  int threads = 0;
  real().cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, of);
  real().cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, of);
  return static_cast<u64>(processors) * static_cast<u64>(threads);
}

CUresult set_limit(CUlimit limit, size_t value) {
  MemoryLedger& ledger = memory_ledger();
  const u32 device = ledger.current_index();
  const CUcontext context = current_context();
  const u64 unit = limit_unit(limit, device);
  if (unit == 0 || context == nullptr) return real().cuCtxSetLimit(limit, value);
  // Contexts lie at least a pointer apart.
  const u64 key = key_of(context) + 1 + static_cast<u64>(limit);
  static auto& begins = *new std::unordered_map<u64, size_t>();
  size_t now = 0;
  if (!begins.contains(key) && real().cuCtxGetLimit(&now, limit) == CUDA_SUCCESS) begins[key] = now;
  u64 more = 0;
  if (value > begins[key] && __builtin_mul_overflow(value - begins[key], unit, &more)) more = ~u64{0};
  const u64 before = ledger.bytes_of(key);
  if (more > before && !ledger.charge(device, more - before)) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = real().cuCtxSetLimit(limit, value);
  if (result != CUDA_SUCCESS) {
    if (more > before) ledger.release(device, more - before);
    return result;
  }
  if (more < before) ledger.release(device, before - more);
  ledger.resize(key, device, more, context);
  return result;
}

// Looking into an image takes as long as reading it, so it is done where there is a limit.
u64 code_bytes(const void* image) {
  const MemoryLedger& ledger = memory_ledger();
  const u32 device = ledger.current_index();
  if (ledger.vgpu(device).limit_bytes() == 0) return 0;
  const CUdevice of = ledger.worker().devices[device];
  int major = 0;
  int minor = 0;
  real().cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, of);
  real().cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, of);
  return code_device_bytes(image, static_cast<u32>(10 * major + minor));
}

CUresult module_load(CUmodule* module, const void* image, unsigned count, CUjit_option* options,
                     void** values) {
  return counted(
      code_bytes(image), [&] { return real().cuModuleLoadDataEx(module, image, count, options, values); },
      [&] { return key_of(*module); });
}

CUresult module_unload(CUmodule module) {
  const CUresult result = real().cuModuleUnload(module);
  if (result == CUDA_SUCCESS) memory_ledger().forget(key_of(module));
  return result;
}

// It is there in every context that uses it, and counts once.
CUresult library_load(CUlibrary* library, const void* code, CUjit_option* jit, void** jit_values,
                      unsigned jit_count, CUlibraryOption* options, void** values, unsigned count) {
  return counted(
      code_bytes(code),
      [&] {
        return real().cuLibraryLoadData(library, code, jit, jit_values, jit_count, options, values, count);
      },
      [&] { return key_of(*library); }, false);
}

CUresult library_unload(CUlibrary library) {
  const CUresult result = real().cuLibraryUnload(library);
  if (result == CUDA_SUCCESS) memory_ledger().forget(key_of(library));
  return result;
}

CUresult context_destroy(CUcontext context) {
  const CUresult result = real().cuCtxDestroy_v2(context);
  if (result == CUDA_SUCCESS) memory_ledger().context_gone(context);
  return result;
}

// A function that the driver lacks stays null: handlers test for that.
template <typename F>
void replace(F& entry, F ours) {
  if (entry != nullptr) entry = ours;
}

}  // namespace

void account_memory(Worker& worker) {
  memory_ledger().open(worker);
  memory_ledger().make_room = [](u32 device) { return ordered_memory().make_room(device); };
  DriverApi& driver = worker.driver;
  replace(driver.cuMemAlloc_v2, &mem_alloc);
  replace(driver.cuMemFree_v2, &mem_free);
  replace(driver.cuMemGetInfo_v2, &mem_get_info);
  replace(driver.cuDeviceTotalMem_v2, &device_total_mem);
  replace(driver.cuMemAllocAsync, &mem_alloc_async);
  replace(driver.cuMemAllocFromPoolAsync, &mem_alloc_from_pool);
  replace(driver.cuMemFreeAsync, &mem_free_async);
  replace(driver.cuStreamDestroy_v2, &stream_destroy);
  replace(driver.cuMemPoolCreate, &pool_create);
  replace(driver.cuMemPoolDestroy, &pool_destroy);
  replace(driver.cuMemPoolTrimTo, &pool_trim);
  replace(driver.cuGraphAddMemAllocNode, &graph_add_allocation);
  replace(driver.cuGraphInstantiateWithParams, &graph_instantiate);
  replace(driver.cuGraphLaunch, &graph_launch);
  replace(driver.cuGraphUpload, &graph_upload);
  replace(driver.cuGraphExecDestroy, &graph_destroy);
  replace(driver.cuDeviceGraphMemTrim, &graph_trim);
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
  replace(driver.cuCtxSetLimit, &set_limit);
  replace(driver.cuModuleLoadDataEx, &module_load);
  replace(driver.cuModuleUnload, &module_unload);
  replace(driver.cuLibraryLoadData, &library_load);
  replace(driver.cuLibraryUnload, &library_unload);
  replace(driver.cuCtxDestroy_v2, &context_destroy);
}

void block_exported(CUmemGenericAllocationHandle block, const wire::ShareToken& token) {
  const auto found = physical().blocks.find(block);
  if (found != physical().blocks.end()) physical().exported[bytes_of(token)] = found->second.charge;
}

void export_dropped(const wire::ShareToken& token) {
  physical().exported.erase(bytes_of(token));
}

void look_at_idle_memory() {
  if (memory_ledger().is_open()) ordered_memory().look_again();
}

const DriverApi& uncounted_driver(const Worker& worker) {
  return memory_ledger().is_open() ? memory_ledger().driver() : worker.driver;
}

}  // namespace gpupool::worker
