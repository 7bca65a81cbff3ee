// Stream-ordered allocation and memory pools. Allocating asks the worker for the address, which the driver
// knows at once; nobody waits for the GPU.
#include <cstring>

#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/kept_memory.hpp"
#include "guest/runtime/manual/memory.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

u64 bits(CUmemoryPool pool) {
  return reinterpret_cast<u64>(pool);
}

CUresult allocate(CUdeviceptr* address, u64 bytes, CUmemoryPool pool, CUstream handle) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (error = check_legacy(*stream); error != CUDA_SUCCESS) return error;
  if (bytes == 0) {  // as driver 580 answers
    *address = 0;
    return CUDA_SUCCESS;
  }
  const bool captured = stream->capturing.load(std::memory_order_acquire);
  if (!captured)
    if (error = check_unsafe_call(); error != CUDA_SUCCESS) return error;
  Allocation allocation;
  // In a capture it becomes a node that allocates.
  if (captured) g_graphs_allocate.store(true, std::memory_order_relaxed);
  allocation.kind = captured ? MemoryKind::graph : MemoryKind::stream_ordered;
  allocation.context = stream->context;
  allocation.device = stream->context->device;
  allocation.pool = bits(pool);
  allocation.size = bytes;
  bool found = false;
  if (!captured)
    if (error = take_kept(allocation, stream, found); error != CUDA_SUCCESS) return error;
  if (found && adopt_device_memory(allocation)) {
    *address = allocation.address;
    return Session::current()->failed();
  }
  const auto ask = [&](Allocation& block, u64 least) {
    Call call(pool == nullptr ? wire::Function::cuMemAllocAsync : wire::Function::cuMemAllocFromPoolAsync);
    call.leave_kept();
    call.on(*stream);
    call.put<u64>(bytes < least ? least : bytes);
    if (pool != nullptr) call.put(wire::Handle{bits(pool)});
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    block.address = call.get<u64>();
    block.size = bytes;
    return CUDA_SUCCESS;
  };
  const auto give_back = [&](const Allocation& block) {
    Call call(wire::Function::cuMemFreeAsync);
    call.on(*stream);
    call.put<u64>(block.address);
    call.send();
  };
  const CUresult result = allocate_at_free_address(allocation, ask, give_back);
  if (result == CUDA_SUCCESS) *address = allocation.address;
  return result;
}

// A location as the session counts devices. Memory elsewhere than on a device would be in the worker's host.
CUresult to_session(CUmemLocation& location) {
  if (location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  location.id = session_device(location.id);
  return location.id < 0 ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

bool is_int_attribute(CUmemPool_attribute attribute) {
  return attribute <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
}
bool known_attribute(CUmemPool_attribute attribute) {
  return attribute >= CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES &&
         attribute <= CU_MEMPOOL_ATTR_USED_MEM_HIGH;
}

}  // namespace

namespace api {

CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream stream) {
  return allocate(address, bytes, nullptr, stream);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* address, size_t bytes, CUmemoryPool pool, CUstream stream) {
  return pool == nullptr ? CUDA_ERROR_INVALID_VALUE : allocate(address, bytes, pool, stream);
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (error = check_legacy(*stream); error != CUDA_SUCCESS) return error;
  if (address == 0) return CUDA_SUCCESS;
  // In a capture it becomes a node that frees, whenever that is launched.
  const bool captured = stream->capturing.load(std::memory_order_acquire);
  std::optional<Allocation> known;
  if (!captured) known = address_space().take(address, {MemoryKind::stream_ordered, MemoryKind::device});
  if (known && known->kind == MemoryKind::stream_ordered && known->context == stream->context &&
      keep_freed(*known, stream))
    return Session::current()->failed();
  Call call(wire::Function::cuMemFreeAsync);
  call.on(*stream);
  call.put<u64>(address);
  if (known) return call.send();
  // An address that is not in the table may still be a graph's; the driver says.
  const CUresult result = call.wait();
  if (captured && result == CUDA_SUCCESS) address_space().lend(address);
  return result;
}

CUresult cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* properties) {
  if (pool == nullptr || properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUmemPoolProps sent = *properties;
  if (const CUresult result = to_session(sent.location); result != CUDA_SUCCESS) return result;
  sent.win32SecurityAttributes = nullptr;
  Call call(wire::Function::cuMemPoolCreate);
  call.put(sent);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *pool = reinterpret_cast<CUmemoryPool>(call.get<wire::Handle>().bits);
  return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  if (pool == nullptr || value == nullptr || !known_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemPoolGetAttribute);
  call.put(wire::Handle{bits(pool)});
  call.put(static_cast<i32>(attribute));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const u64 wide = call.get<u64>();
  if (is_int_attribute(attribute)) {
    const auto narrow = static_cast<i32>(wide);
    std::memcpy(value, &narrow, sizeof narrow);
  } else {
    std::memcpy(value, &wide, sizeof wide);
  }
  return CUDA_SUCCESS;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  if (pool == nullptr || value == nullptr || !known_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  u64 wide = 0;
  std::memcpy(&wide, value, is_int_attribute(attribute) ? sizeof(i32) : sizeof wide);
  Call call(wire::Function::cuMemPoolSetAttribute);
  call.put(wire::Handle{bits(pool)});
  call.put(static_cast<i32>(attribute));
  call.put(wide);
  return call.wait();
}

CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc* map, size_t count) {
  if (pool == nullptr || (map == nullptr && count != 0) || count > wire::kMaxDevices)
    return CUDA_ERROR_INVALID_VALUE;
  std::vector<CUmemAccessDesc> access(map, map + count);
  for (CUmemAccessDesc& each : access)
    if (const CUresult result = to_session(each.location); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemPoolSetAccess);
  call.put(wire::Handle{bits(pool)});
  call.put_array(access.data(), access.size());
  return call.wait();
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool pool, CUmemLocation* location) {
  if (flags == nullptr || pool == nullptr || location == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUmemLocation sent = *location;
  if (const CUresult result = to_session(sent); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemPoolGetAccess);
  call.put(wire::Handle{bits(pool)});
  call.put(sent);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *flags = static_cast<CUmemAccess_flags>(call.get<u32>());
  return CUDA_SUCCESS;
}

CUresult cuMemGetDefaultMemPool(CUmemoryPool* pool, CUmemLocation* location, CUmemAllocationType type) {
  if (pool == nullptr || location == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_ALLOCATION_TYPE_PINNED || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
    return CUDA_ERROR_NOT_SUPPORTED;
  return api::cuDeviceGetDefaultMemPool(pool, location->id);
}

CUresult cuMemGetMemPool(CUmemoryPool* pool, CUmemLocation* location, CUmemAllocationType type) {
  if (pool == nullptr || location == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_ALLOCATION_TYPE_PINNED || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
    return CUDA_ERROR_NOT_SUPPORTED;
  return api::cuDeviceGetMemPool(pool, location->id);
}

CUresult cuMemSetMemPool(CUmemLocation* location, CUmemAllocationType type, CUmemoryPool pool) {
  if (location == nullptr || pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_ALLOCATION_TYPE_PINNED || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
    return CUDA_ERROR_NOT_SUPPORTED;
  return api::cuDeviceSetMemPool(location->id, pool);
}

}  // namespace api
}  // namespace gpupool::guest
