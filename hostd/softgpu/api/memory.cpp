// Allocating and freeing: device memory, pinned host memory, registered host memory.
#include "hostd/softgpu/api/memory.hpp"

#include <sys/mman.h>

#include <cerrno>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/graph_memory.hpp"

namespace gpupool::softgpu {

namespace {

CUdeviceptr allocate(u64 bytes) {
  const auto context = current_context();
  refuse_unsafe_call();
  return allocate_device(*context, bytes, MemoryKind::device).base;
}

// Work submitted before a free may still use the memory: the driver waits for it, and so do we.
void wait_before_release(const Allocation& allocation) {
  if (allocation.host())
    synchronize_everything();  // host memory may be used by every device
  else
    synchronize_device(device_of(allocation.device));
}

void free_pinned(const Allocation& allocation) {
  munmap(reinterpret_cast<void*>(allocation.base), allocation.reserved);
}

void enter_host_range(Context& context, void* address, u64 bytes, u64 reserved, MemoryKind kind, u32 flags) {
  Allocation allocation;
  allocation.base = reinterpret_cast<u64>(address);
  allocation.size = bytes;
  allocation.reserved = reserved;
  allocation.kind = kind;
  allocation.device = context.device->ordinal;
  allocation.context = context.handle;
  allocation.context_id = context.id;
  allocation.flags = flags;
  require(memory_table().insert(allocation), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
}

void* allocate_pinned(u64 bytes, u32 flags) {
  constexpr u32 kKnown = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
  require(bytes != 0 && (flags & ~kKnown) == 0);
  const auto context = current_context();
  refuse_unsafe_call();
  const u64 reserved = round_up(bytes, kPageBytes);
  void* memory = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(memory != MAP_FAILED, CUDA_ERROR_OUT_OF_MEMORY);
  try {
    // With unified addressing all pinned memory is mapped and portable; the flags say so, as the driver's do.
    enter_host_range(*context, memory, bytes, reserved, MemoryKind::pinned,
                     flags | CU_MEMHOSTALLOC_DEVICEMAP);
  } catch (...) {
    munmap(memory, reserved);
    throw;
  }
  return memory;
}

Allocation find_host(const void* address) {
  const auto found = memory_table().find(reinterpret_cast<u64>(address));
  require(found && found->host());
  return *found;
}

}  // namespace

void free_context_memory(Context& context) {
  for (const Allocation& allocation : memory_table().of_context(context.id)) {
    if (allocation.kind == MemoryKind::mapped) continue;  // belongs to nobody: unmapped by its address
    if (!memory_table().take(allocation.base)) continue;
    if (allocation.kind == MemoryKind::pinned)
      free_pinned(allocation);
    else if (allocation.kind != MemoryKind::registered)
      release_device(allocation);
  }
}

GPUPOOL_CUDA CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  return call([&] {
    require(out != nullptr);
    *out = allocate(bytes);
  });
}

GPUPOOL_CUDA CUresult cuMemAllocPitch_v2(CUdeviceptr* out, size_t* pitch, size_t width, size_t height,
                                         unsigned int element) {
  return call([&] {
    require(out != nullptr && pitch != nullptr && width != 0 && height != 0);
    require(element == 4 || element == 8 || element == 16);
    require(width <= ~0ull / 2, CUDA_ERROR_OUT_OF_MEMORY);
    const u64 row = round_up(width, kSmallAlignment);
    require(height <= ~0ull / row, CUDA_ERROR_OUT_OF_MEMORY);
    *out = allocate(row * height);
    *pitch = row;
  });
}

GPUPOOL_CUDA CUresult cuMemFree_v2(CUdeviceptr address) {
  return call([&] {
    const auto context = current_context();
    if (address == 0) return;
    refuse_unsafe_call();
    const auto found = memory_table().find(address);
    require(found && found->base == address);
    if (found->kind == MemoryKind::graph) {
      wait_before_release(*found);
      require(free_graph_memory(address));
      return;
    }
    require(found->kind == MemoryKind::device || found->kind == MemoryKind::pooled);
    wait_before_release(*found);
    const auto taken = memory_table().take(address);
    require(taken.has_value());  // another thread was quicker
    forget_pooled(*taken);
    release_device(*taken);
    context->require_healthy();
  });
}

GPUPOOL_CUDA CUresult cuMemGetInfo_v2(size_t* available, size_t* total) {
  return call([&] {
    require(available != nullptr && total != nullptr);
    const Device& device = *current_context()->device;
    *total = device.memory_bytes;
    *available = device.memory_bytes - device.used_bytes.load();
  });
}

GPUPOOL_CUDA CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
  return call([&] {
    current_context();
    const auto found = memory_table().find(address);
    require(found.has_value(), CUDA_ERROR_NOT_FOUND);
    if (base != nullptr) *base = found->base;
    if (size != nullptr) *size = found->size;
  });
}

GPUPOOL_CUDA CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned int flags) {
  return call([&] {
    require(out != nullptr);
    *out = allocate_pinned(bytes, flags);
  });
}

GPUPOOL_CUDA CUresult cuMemAllocHost_v2(void** out, size_t bytes) {
  return call([&] {
    require(out != nullptr);
    *out = allocate_pinned(bytes, 0);
  });
}

GPUPOOL_CUDA CUresult cuMemFreeHost(void* address) {
  return call([&] {
    if (address == nullptr) return;
    const Allocation found = find_host(address);
    require(found.kind == MemoryKind::pinned && found.base == reinterpret_cast<u64>(address));
    refuse_unsafe_call();
    wait_before_release(found);
    require(memory_table().take(found.base).has_value());
    free_pinned(found);
  });
}

GPUPOOL_CUDA CUresult cuMemHostRegister_v2(void* address, size_t bytes, unsigned int flags) {
  return call([&] {
    constexpr u32 kKnown =
        CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY;
    require(address != nullptr && bytes != 0);
    require((flags & ~kKnown) == 0,
            (flags & CU_MEMHOSTREGISTER_IOMEMORY) != 0 ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE);
    require(reinterpret_cast<u64>(address) + bytes > reinterpret_cast<u64>(address));
    const auto context = current_context();
    // The range must be there: what is not mapped cannot be pinned. mincore says ENOMEM for holes.
    const u64 first = reinterpret_cast<u64>(address) / kPageBytes * kPageBytes;
    const u64 last = round_up(reinterpret_cast<u64>(address) + bytes, kPageBytes);
    std::vector<unsigned char> pages(std::min<u64>((last - first) / kPageBytes, 1u << 20));
    for (u64 at = first; at < last; at += pages.size() * kPageBytes)
      require(mincore(reinterpret_cast<void*>(at), std::min(last - at, pages.size() * kPageBytes),
                      pages.data()) == 0);
    enter_host_range(*context, address, bytes, bytes, MemoryKind::registered,
                     flags | CU_MEMHOSTREGISTER_DEVICEMAP);
  });
}

GPUPOOL_CUDA CUresult cuMemHostUnregister(void* address) {
  return call([&] {
    current_context();
    const auto found = memory_table().find(reinterpret_cast<u64>(address));
    require(found && found->kind == MemoryKind::registered && found->base == reinterpret_cast<u64>(address),
            CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    wait_before_release(*found);
    require(memory_table().take(found->base).has_value(), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
  });
}

GPUPOOL_CUDA CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* address, unsigned int flags) {
  return call([&] {
    require(out != nullptr && flags == 0);
    current_context();
    find_host(address);
    *out = reinterpret_cast<CUdeviceptr>(address);
  });
}

GPUPOOL_CUDA CUresult cuMemHostGetFlags(unsigned int* flags, void* address) {
  return call([&] {
    require(flags != nullptr);
    current_context();
    *flags = find_host(address).flags;
  });
}

}  // namespace gpupool::softgpu
