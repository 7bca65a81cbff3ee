// Stream-ordered memory. An allocation is usable at once; a free takes effect when its stream gets there.
// A pool takes memory of the device in steps of 32 MiB, as an H100 does. What is freed returns to it, but for
// the step that is in use and what the release threshold lets a pool keep: that stays charged to the device
// until the pool hands it out again, is trimmed or destroyed. What is freed in a stream's order comes back
// only after the host has waited for something, as on an H100; a query does not do.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <map>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/graph_memory.hpp"
#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

std::atomic<bool> g_unseen{false};  // some pool has such memory

struct Pool {
  CUmemoryPool handle = nullptr;
  Device* device = nullptr;
  bool standard = false;  // a device's default pool
  bool exportable = false;
  bool imported = false;  // another process's: it allocates, we only open
  u64 limit_bytes = ~0ull;
  std::mutex mutex;
  u64 used = 0, high = 0;
  u64 kept = 0, reserved_high = 0;
  u64 unseen = 0;  // of what is kept: freed, and nobody has waited for that
  u64 release_threshold = 0;
  std::array<int, 4> reuse{0, 1, 1, 1};  // by CUmemPool_attribute, the first three of which are these
  std::map<int, CUmemAccess_flags> access;

  void charge(u64 bytes) {
    const std::lock_guard lock(mutex);
    require(bytes <= limit_bytes - std::min(used, limit_bytes), CUDA_ERROR_OUT_OF_MEMORY);
    used += bytes;
    give_up(std::min(kept, bytes));  // whoever allocates charges the device for all of it
    unseen = std::min(unseen, kept);
    high = std::max(high, used);
    reserved_high = std::max(reserved_high, used + kept);
  }
  // After an allocation: the rest of the step, as far as the device has it.
  void fill_step() {
    const std::lock_guard lock(mutex);
    const u64 steps = round_up(used, kPoolStep);
    if (used + kept >= steps || !device->charge(steps - used - kept)) return;
    kept = steps - used;
    reserved_high = std::max(reserved_high, used + kept);
  }
  // An allocation that came to nothing.
  void uncharge(u64 bytes) {
    const std::lock_guard lock(mutex);
    used -= bytes;
    keep_at_most(release_threshold);
  }
  // The caller takes the bytes off the device's account.
  void release(u64 bytes) {
    const std::lock_guard lock(mutex);
    used -= bytes;
    kept += bytes;
    unseen += bytes;
    g_unseen.store(true);
    device->used_bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
  void see() {
    const std::lock_guard lock(mutex);
    unseen = 0;
    keep_at_most(release_threshold);
  }
  void trim_to(u64 bytes) {
    const std::lock_guard lock(mutex);
    keep_at_most(bytes);
  }
  // The mutex is held.
  void keep_at_most(u64 bytes) {
    const u64 stays = std::max(bytes, round_up(used + unseen, kPoolStep));
    if (used + kept > stays) give_up(used + kept - stays);
  }
  // The mutex is held.
  void give_up(u64 bytes) {
    kept -= bytes;
    device->release(bytes);
  }
};

Registry<Pool, CUmemoryPool>& pools() {
  static auto* registry = new Registry<Pool, CUmemoryPool>(13);
  return *registry;
}

struct DevicePools {
  std::shared_ptr<Pool> standard;
  std::shared_ptr<Pool> current;
};

std::mutex& device_pools_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

// The default pool and the one in use; made at first sight. device_pools_mutex() is held.
DevicePools& pools_of(Device& device) {
  static auto* all = new std::array<DevicePools, kMaxDevices>;
  DevicePools& mine = (*all)[static_cast<u32>(device.ordinal)];
  if (!mine.standard) {
    mine.standard = mine.current = std::make_shared<Pool>();
    mine.standard->device = &device;
    mine.standard->standard = true;
    pools().add(mine.standard);
  }
  return mine;
}

std::shared_ptr<Pool> current_pool(Device& device) {
  const std::lock_guard lock(device_pools_mutex());
  return pools_of(device).current;
}

std::shared_ptr<Pool> pool_of(CUmemoryPool handle) {
  return pools().get(handle, CUDA_ERROR_INVALID_VALUE);
}

CUdeviceptr take_memory(Pool& pool, Context& context, u64 bytes) {
  const auto number = reinterpret_cast<u64>(pool.handle);
  const CUdeviceptr address = allocate_device(context, bytes, MemoryKind::pooled, number).base;
  pool.fill_step();
  return address;
}

CUdeviceptr allocate(Pool& pool, u64 bytes, CUstream stream_handle) {
  const auto stream = resolve_stream(stream_handle);
  require(bytes != 0);
  if (stream->capturing.load()) {
    CUDA_MEM_ALLOC_NODE_PARAMS node{};
    node.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    node.poolProps.location = {CU_MEM_LOCATION_TYPE_DEVICE, {pool.device->ordinal}};
    node.bytesize = bytes;
    auto operation = make_allocation(node);
    const u64 address = operation->memory->address;
    put_on_stream(stream, std::move(operation));
    return address;
  }
  refuse_while_capturing(*stream);
  const u64 charged = round_up(bytes, kSmallAlignment);
  pool.charge(charged);
  try {
    try {
      return take_memory(pool, *stream->context, bytes);
    } catch (const Error& error) {
      if (error.result != CUDA_ERROR_OUT_OF_MEMORY) throw;
    }
    synchronize_device(*pool.device);  // frees that are queued may make room
    return take_memory(pool, *stream->context, bytes);
  } catch (...) {
    pool.uncharge(charged);
    throw;
  }
}

void get_attribute(Pool& pool, CUmemPool_attribute attribute, void* value) {
  const std::lock_guard lock(pool.mutex);
  switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
      *static_cast<int*>(value) = pool.reuse[static_cast<u32>(attribute)];
      return;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      *static_cast<cuuint64_t*>(value) = pool.release_threshold;
      return;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
      *static_cast<cuuint64_t*>(value) = pool.used + pool.kept;
      return;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
      *static_cast<cuuint64_t*>(value) = pool.used;
      return;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      *static_cast<cuuint64_t*>(value) = pool.reserved_high;
      return;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
      *static_cast<cuuint64_t*>(value) = pool.high;
      return;
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

void set_attribute(Pool& pool, CUmemPool_attribute attribute, const void* value) {
  const std::lock_guard lock(pool.mutex);
  switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
      pool.reuse[static_cast<u32>(attribute)] = *static_cast<const int*>(value) != 0;
      return;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      pool.release_threshold = *static_cast<const cuuint64_t*>(value);
      pool.keep_at_most(pool.release_threshold);
      return;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      require(*static_cast<const cuuint64_t*>(value) == 0);
      pool.reserved_high = pool.used + pool.kept;
      return;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
      require(*static_cast<const cuuint64_t*>(value) == 0);
      pool.high = pool.used;
      return;
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

Device& device_at(const CUmemLocation& location) {
  require(location.type == CU_MEM_LOCATION_TYPE_DEVICE);
  return device_of(location.id);
}

}  // namespace

void see_frees() {
  if (!g_unseen.exchange(false)) return;
  for (const auto& pool : pools().all()) pool->see();
}

void forget_pooled(const Allocation& allocation) {
  if (allocation.kind != MemoryKind::pooled || allocation.mapping != 0) return;
  if (const auto pool = pools().still_there(reinterpret_cast<CUmemoryPool>(allocation.pool)))
    pool->release(allocation.reserved);
}

CUresult FreeOperation::run(Context&) const {
  if (const auto taken = memory_table().take(address)) {
    forget_pooled(*taken);
    release_device(*taken);
  }
  return CUDA_SUCCESS;
}

GPUPOOL_CUDA CUresult cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream stream) {
  return call([&] {
    require(out != nullptr);
    *out = allocate(*current_pool(*resolve_stream(stream)->context->device), bytes, stream);
  });
}

GPUPOOL_CUDA CUresult cuMemAllocFromPoolAsync(CUdeviceptr* out, size_t bytes, CUmemoryPool pool,
                                              CUstream stream) {
  return call([&] {
    require(out != nullptr);
    const auto from = pool_of(pool);
    require(!from->imported);
    *out = allocate(*from, bytes, stream);
  });
}

GPUPOOL_CUDA CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream_handle) {
  return call([&] {
    const auto stream = resolve_stream(stream_handle);
    if (stream->capturing.load()) return put_on_stream(stream, make_free(address));
    refuse_while_capturing(*stream);
    if (free_graph_memory(address)) return;
    require(memory_table().begin_free(address));
    auto operation = std::make_shared<FreeOperation>();
    operation->address = address;
    stream->submit_quick(std::move(operation));
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* out, CUdevice device) {
  return call([&] {
    require(out != nullptr);
    const std::lock_guard lock(device_pools_mutex());
    *out = pools_of(device_of(device)).standard->handle;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetMemPool(CUmemoryPool* out, CUdevice device) {
  return call([&] {
    require(out != nullptr);
    *out = current_pool(device_of(device))->handle;
  });
}

GPUPOOL_CUDA CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle) {
  return call([&] {
    auto pool = pool_of(handle);
    require(pool->device == &device_of(device));
    const std::lock_guard lock(device_pools_mutex());
    pools_of(*pool->device).current = std::move(pool);
  });
}

GPUPOOL_CUDA CUresult cuMemPoolCreate(CUmemoryPool* out, const CUmemPoolProps* properties) {
  return call([&] {
    require(out != nullptr && properties != nullptr &&
            properties->allocType == CU_MEM_ALLOCATION_TYPE_PINNED);
    require(properties->handleTypes == CU_MEM_HANDLE_TYPE_NONE ||
                properties->handleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
            CUDA_ERROR_NOT_SUPPORTED);
    auto pool = std::make_shared<Pool>();
    pool->exportable = properties->handleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    pool->device = &device_at(properties->location);
    if (properties->maxSize != 0) pool->limit_bytes = properties->maxSize;
    *out = pools().add(std::move(pool));
  });
}

GPUPOOL_CUDA CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  return call([&] {
    const auto pool = pool_of(handle);
    require(!pool->standard);
    const std::lock_guard lock(device_pools_mutex());
    DevicePools& mine = pools_of(*pool->device);
    if (mine.current == pool) mine.current = mine.standard;
    {
      const std::lock_guard pool_lock(pool->mutex);
      pool->give_up(pool->kept);
      pool->unseen = 0;
    }
    pools().take(handle);  // its allocations live on until they are freed
  });
}

GPUPOOL_CUDA CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep) {
  return call([&] { pool_of(handle)->trim_to(keep); });
}

GPUPOOL_CUDA CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  return call([&] {
    require(value != nullptr);
    get_attribute(*pool_of(handle), attribute, value);
  });
}

GPUPOOL_CUDA CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  return call([&] {
    require(value != nullptr);
    set_attribute(*pool_of(handle), attribute, value);
  });
}

GPUPOOL_CUDA CUresult cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc* access, size_t count) {
  return call([&] {
    require(count == 0 || access != nullptr);
    const auto pool = pool_of(handle);
    const std::lock_guard lock(pool->mutex);
    for (size_t i = 0; i < count; ++i) {
      const Device& device = device_at(access[i].location);
      require(&device != pool->device || access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
      pool->access[device.ordinal] = access[i].flags;
    }
  });
}

GPUPOOL_CUDA CUresult cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool handle,
                                         CUmemLocation* location) {
  return call([&] {
    require(flags != nullptr && location != nullptr);
    const auto pool = pool_of(handle);
    const Device& device = device_at(*location);
    const std::lock_guard lock(pool->mutex);
    const auto found = pool->access.find(device.ordinal);
    *flags = &device == pool->device       ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
             : found == pool->access.end() ? CU_MEM_ACCESS_FLAGS_PROT_NONE
                                           : found->second;
  });
}

// A pool's descriptor says which device it is on, in its name; all else is said by each pointer's data.
GPUPOOL_CUDA CUresult cuMemPoolExportToShareableHandle(void* out, CUmemoryPool handle,
                                                       CUmemAllocationHandleType type,
                                                       unsigned long long flags) {
  return call([&] {
    require(out != nullptr && flags == 0 && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    const auto pool = pool_of(handle);
    require(pool->exportable);
    char name[48];
    std::snprintf(name, sizeof name, "gpupool-softpool-%d", pool->device->ordinal);
    const int file = memfd_create(name, MFD_CLOEXEC);
    require(file >= 0, CUDA_ERROR_OPERATING_SYSTEM);
    std::memcpy(out, &file, sizeof file);
  });
}

GPUPOOL_CUDA CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool* out, void* handle,
                                                         CUmemAllocationHandleType type,
                                                         unsigned long long flags) {
  return call([&] {
    require(out != nullptr && flags == 0 && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    char link[64], target[256] = {};
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", static_cast<int>(reinterpret_cast<i64>(handle)));
    int ordinal = -1;
    require(readlink(link, target, sizeof target - 1) > 0 &&
            std::sscanf(target, "/memfd:gpupool-softpool-%d", &ordinal) == 1);
    auto pool = std::make_shared<Pool>();
    pool->device = &device_of(ordinal);
    pool->imported = true;
    *out = pools().add(std::move(pool));
  });
}

GPUPOOL_CUDA CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData* out, CUdeviceptr address) {
  return call([&] {
    require(out != nullptr);
    const auto found = memory_table().find(address);
    require(found && found->base == address && found->kind == MemoryKind::pooled);
    const auto pool = pools().still_there(reinterpret_cast<CUmemoryPool>(found->pool));
    require(pool != nullptr && pool->exportable);
    const SharedHandle handle = share_memory(*found);
    static_assert(sizeof handle == sizeof *out);
    std::memcpy(out, &handle, sizeof handle);
  });
}

GPUPOOL_CUDA CUresult cuMemPoolImportPointer(CUdeviceptr* out, CUmemoryPool pool_handle,
                                             CUmemPoolPtrExportData* data) {
  return call([&] {
    require(out != nullptr && data != nullptr && pool_of(pool_handle)->imported);
    SharedHandle handle;
    std::memcpy(static_cast<void*>(&handle), data, sizeof handle);
    *out = open_shared_memory(handle, *current_context(), MemoryKind::pooled).base;
  });
}

}  // namespace gpupool::softgpu
