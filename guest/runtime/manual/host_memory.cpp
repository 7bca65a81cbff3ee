// Pinned host memory. What the program allocates comes from the window, so that the GPU reaches it at the
// same address and copies need no staging. What the program registers stays where it is: replacing private
// pages behind its back would break fork, so registered memory is bookkeeping and its copies are staged.
// Memory that it shares with others already (a file of /dev/shm, a memfd) is mapped in the worker as well, at
// the same address, so that kernels reach it.
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/memory.hpp"
#include "guest/runtime/manual/shared_mapping.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/session.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

constexpr unsigned kAllocFlags =
    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
constexpr unsigned kRegisterFlags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP |
                                    CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY;

u64 address_of(const void* pointer) {
  return reinterpret_cast<u64>(pointer);
}

CUresult wait_for_everything(Session& session) {
  CUresult result = session.take_async_error();
  std::vector<Context*> living;
  g_contexts.each([&](Context& context) {
    if (context.alive.load(std::memory_order_acquire)) living.push_back(&context);
  });
  for (Context* context : living) {
    const CUresult waited = session.synchronize(*context);
    if (result == CUDA_SUCCESS) result = waited;
  }
  return result;
}

// Has the worker map what the program registers, if it is shared memory. Without that it is registered all
// the same: copies need no mapping.
void map_in_worker(Session& session, Allocation& allocation) {
  constexpr u64 kPage = 4096;
  const u64 begin = allocation.address / kPage * kPage;
  const u64 end = (allocation.end() + kPage - 1) / kPage * kPage;
  const std::optional<SharedMapping> mapping = find_shared_mapping(begin, end);
  if (!mapping) return;
  const u64 parcel = session.send_descriptor(mapping->fd);
  close(mapping->fd);
  if (parcel == 0) return;
  Call call(wire::Function::host_map);
  call.put<u64>(begin);
  call.put<u64>(end - begin);
  call.put<u64>(mapping->offset);
  call.put<u64>(parcel);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS)
    allocation.host_map = begin;
  else
    log_debug("registered memory at %p is not mapped for the GPU: error %d",
              reinterpret_cast<void*>(allocation.address), static_cast<int>(result));
}

// What pinned and managed memory has of the window.
std::atomic<u64> g_in_window{0};

// A piece of a virtual machine's window is small, and code images and copies need some of it, so a program's
// pinned memory gets half of its heap. What comes beyond that is memory of this process alone, whose copies
// are staged as those of registered memory; but not for whoever says that kernels will reach it.
bool has_room(const Session& session, u64 bytes, unsigned flags) {
  if (!session.in_machine_window() || (flags & CU_MEMHOSTALLOC_DEVICEMAP) != 0) return true;
  const u64 most = (session.window().size - wire::kHeapOffset) / 2;
  const u64 used = g_in_window.load(std::memory_order_relaxed);
  return used <= most && bytes <= most - used;
}

CUresult allocate_aside(Allocation& allocation, Context& context, u64 bytes) {
  constexpr u64 kPage = 4096;
  if (bytes > ~u64{0} - kPage) return CUDA_ERROR_OUT_OF_MEMORY;
  const u64 size = (bytes + kPage - 1) / kPage * kPage;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  static std::once_flag once;
  std::call_once(once, [] {
    log_line(
        "this program pins more memory than its piece of the machine's window is for: copies of what is "
        "beyond are staged, and kernels do not reach it; a larger window (gpupool vm attach --window, on the "
        "host) has room");
  });
  allocation.address = address_of(memory);
  allocation.size = bytes;
  allocation.context = &context;
  allocation.device = context.device;
  allocation.reserved = size;
  if (address_space().insert(allocation)) return CUDA_SUCCESS;
  munmap(memory, size);
  return CUDA_ERROR_UNKNOWN;
}

bool is_aside(const Allocation& allocation) {
  return allocation.kind == MemoryKind::pinned && allocation.block == 0;
}

}  // namespace

CUresult allocate_from_window(Allocation& allocation, Context& context, u64 bytes) {
  Session* session = Session::current();
  CUresult error = CUDA_SUCCESS;
  const Bulk bulk = session->heap_allocate(bytes, true, error);
  if (!bulk) return error != CUDA_SUCCESS ? error : CUDA_ERROR_OUT_OF_MEMORY;
  allocation.address = address_of(bulk.address);
  allocation.size = bytes;
  allocation.context = &context;
  allocation.device = context.device;
  allocation.block = bulk.offset;
  allocation.reserved = bulk.size;
  g_in_window.fetch_add(bulk.size, std::memory_order_relaxed);
  if (address_space().insert(allocation)) return CUDA_SUCCESS;
  give_back(*session, allocation);
  return CUDA_ERROR_UNKNOWN;
}

CUresult free_to_window(const Allocation& allocation) {
  Session* session = Session::current();
  const CUresult result = wait_for_everything(*session);
  give_back(*session, allocation);
  return result;
}

void give_back(Session& session, const Allocation& allocation) {
  auto* address = reinterpret_cast<u8*>(allocation.address);
  if (allocation.block == 0) {
    munmap(address, allocation.reserved);
    return;
  }
  g_in_window.fetch_sub(allocation.reserved, std::memory_order_relaxed);
  session.heap_free(Bulk{allocation.block, allocation.reserved, address});
}

CUresult unmap_registered(const Allocation& allocation) {
  if (allocation.host_map == 0) return CUDA_SUCCESS;
  const CUresult result = wait_for_everything(*Session::current());
  Call call(wire::Function::host_unmap);
  call.put<u64>(allocation.host_map);
  const CUresult unmapped = call.wait();
  return result != CUDA_SUCCESS ? result : unmapped;
}

namespace api {

CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned int flags) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (pointer == nullptr || (flags & ~kAllocFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  if (bytes == 0) {  // as driver 580 answers
    *pointer = nullptr;
    return CUDA_SUCCESS;
  }
  Allocation allocation;
  allocation.kind = MemoryKind::pinned;
  allocation.flags = flags;
  const CUresult result = has_room(*Session::current(), bytes, flags)
                              ? allocate_from_window(allocation, *context, bytes)
                              : allocate_aside(allocation, *context, bytes);
  if (result == CUDA_SUCCESS) *pointer = reinterpret_cast<void*>(allocation.address);
  return result;
}

CUresult cuMemAllocHost_v2(void** pointer, size_t bytes) {
  return cuMemHostAlloc(pointer, bytes, 0);
}

CUresult cuMemFreeHost(void* pointer) {
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  if (pointer == nullptr) return CUDA_SUCCESS;  // as driver 580 answers
  const std::optional<Allocation> allocation =
      address_space().take(address_of(pointer), {MemoryKind::pinned});
  return allocation ? free_to_window(*allocation) : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* pointer, unsigned int flags) {
  if (device == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  const std::optional<Allocation> allocation = address_space().find(address_of(pointer));
  if (!allocation || !allocation->on_host()) return CUDA_ERROR_INVALID_VALUE;
  if (is_aside(*allocation)) return CUDA_ERROR_NOT_SUPPORTED;
  if (allocation->kind == MemoryKind::registered) {
    if (allocation->host_map != 0) {
      *device = address_of(pointer);
      return CUDA_SUCCESS;
    }
    static std::once_flag once;
    std::call_once(once, [] {
      log_line(
          "private memory registered with cuMemHostRegister cannot be mapped into the vGPU: allocate it with "
          "cuMemHostAlloc");
    });
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (!Session::current()->shared_memory()) {
    // Libraries ask for the address at start (cuDNN) without ever reading the memory; so the address is
    // given, and the device attribute CAN_MAP_HOST_MEMORY, which says 0, tells programs that look.
    static std::once_flag once;
    std::call_once(once, [] {
      log_line(
          "this connection has no shared memory: what kernels write to mapped host memory does not arrive in "
          "it");
    });
  }
  *device = address_of(pointer);
  return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned int* flags, void* pointer) {
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::optional<Allocation> allocation = address_space().find(address_of(pointer));
  if (!allocation || allocation->kind != MemoryKind::pinned) return CUDA_ERROR_INVALID_VALUE;
  // Driver 580 calls all of it mapped and none of it portable, whatever was asked for.
  *flags = (allocation->flags & CU_MEMHOSTALLOC_WRITECOMBINED) | CU_MEMHOSTALLOC_DEVICEMAP;
  return CUDA_SUCCESS;
}

CUresult cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned int flags) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (pointer == nullptr || bytes == 0 || (flags & ~kRegisterFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if ((flags & CU_MEMHOSTREGISTER_IOMEMORY) != 0) return CUDA_ERROR_NOT_SUPPORTED;  // another device's memory
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  Allocation allocation;
  allocation.address = address_of(pointer);
  allocation.size = bytes;
  allocation.kind = MemoryKind::registered;
  allocation.context = context;
  allocation.device = context->device;
  allocation.flags = flags;
  if (!address_space().empty(allocation.address, allocation.size))
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  map_in_worker(*Session::current(), allocation);
  if (address_space().insert(allocation)) return CUDA_SUCCESS;
  static_cast<void>(unmap_registered(allocation));  // another thread was quicker
  return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}

CUresult cuMemHostUnregister(void* pointer) {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  const std::optional<Allocation> allocation =
      address_space().take(address_of(pointer), {MemoryKind::registered});
  // Copies from and to registered memory are staged and done when their calls return; kernels that reach it
  // may be under way.
  if (allocation) return unmap_registered(*allocation);
  const std::optional<Allocation> around = address_space().find(address_of(pointer));
  const bool inside = around && around->kind == MemoryKind::registered;
  return inside ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

}  // namespace api
}  // namespace gpupool::guest
