// Device memory: cuMemAlloc and what belongs to it.
#include "guest/runtime/manual/memory.hpp"

#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/manual/kept_memory.hpp"
#include "guest/runtime/manual/share.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

constexpr int kTries = 64;

Allocation new_allocation(MemoryKind kind, Context& context) {
  Allocation allocation;
  allocation.kind = kind;
  allocation.context = &context;
  allocation.device = context.device;
  return allocation;
}

void free_in_worker(const Allocation& allocation) {
  Call call(wire::Function::cuMemFree_v2);
  call.put<u64>(allocation.address);
  call.send();
}

}  // namespace

CUresult allocate_at_free_address(Allocation& allocation,
                                  const std::function<CUresult(Allocation&, u64)>& allocate,
                                  const std::function<void(const Allocation&)>& give_back) {
  std::vector<Allocation> in_the_way;
  CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
  bool found = false;
  for (int tried = 0; tried < kTries && !found; ++tried) {
    // The driver puts many small allocations into one block: after a collision ask for whole blocks, which
    // leaves the taken range behind in steps of a block.
    const u64 least = tried == 0 ? 0 : kAddressUnit;
    result = allocate(allocation, least);
    // Blocks that were exported through descriptors which are closed by now are free as well.
    const bool gave_back = result == CUDA_ERROR_OUT_OF_MEMORY && give_back_kept();
    const bool collected = result == CUDA_ERROR_OUT_OF_MEMORY && collect_token_files(true);
    if (gave_back || collected) result = allocate(allocation, least);
    if (result != CUDA_SUCCESS) break;
    found = adopt_device_memory(allocation);
    // Held until we are done, so that the worker's driver gives us another place.
    if (!found) in_the_way.push_back(allocation);
  }
  for (const Allocation& held : in_the_way) give_back(held);
  if (found) return CUDA_SUCCESS;
  if (!in_the_way.empty()) {
    log_line(
        "device memory of %llu bytes fell %zu times on addresses that this program uses (last 0x%llx); "
        "giving up",
        static_cast<unsigned long long>(allocation.size), in_the_way.size(),
        static_cast<unsigned long long>(in_the_way.back().address));
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return result;
}

namespace api {

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (address == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  Allocation allocation = new_allocation(MemoryKind::device, *context);
  allocation.size = bytes;
  bool found = false;
  if (const CUresult result = take_kept(allocation, nullptr, found); result != CUDA_SUCCESS) return result;
  if (found && adopt_device_memory(allocation)) {
    *address = allocation.address;
    return CUDA_SUCCESS;
  }
  const auto allocate = [&](Allocation& block, u64 least) {
    Call call(wire::Function::cuMemAlloc_v2);
    call.leave_kept();
    call.put<u64>(bytes < least ? least : bytes);
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    block.address = call.get<u64>();
    block.size = bytes;
    return CUDA_SUCCESS;
  };
  const CUresult result = allocate_at_free_address(allocation, allocate, free_in_worker);
  if (result == CUDA_SUCCESS) *address = allocation.address;
  return result;
}

// The rows of the driver's own answer begin at multiples of 512 bytes, whatever the element (seen on driver
// 580).
CUresult cuMemAllocPitch_v2(CUdeviceptr* address, size_t* pitch, size_t width_bytes, size_t height,
                            unsigned int element_bytes) {
  constexpr u64 kPitchUnit = 512;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  const bool element_fits = element_bytes == 4 || element_bytes == 8 || element_bytes == 16;
  if (address == nullptr || pitch == nullptr || width_bytes == 0 || height == 0 || !element_fits)
    return CUDA_ERROR_INVALID_VALUE;
  u64 row = 0;
  u64 bytes = 0;
  if (__builtin_add_overflow(u64{width_bytes}, kPitchUnit - 1, &row)) return CUDA_ERROR_OUT_OF_MEMORY;
  row = row / kPitchUnit * kPitchUnit;
  if (__builtin_mul_overflow(row, u64{height}, &bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = cuMemAlloc_v2(address, bytes);
  if (result == CUDA_SUCCESS) *pitch = row;
  return result;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  if (address == 0) return CUDA_SUCCESS;
  if (check_context(current_context()) == CUDA_ERROR_CONTEXT_IS_DESTROYED)
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  const std::optional<Allocation> allocation =
      address_space().take(address, {MemoryKind::device, MemoryKind::stream_ordered, MemoryKind::managed});
  // What a graph has allocated may be freed outside; whether it is there now, the driver knows.
  const std::optional<Allocation> of_graph = allocation ? std::nullopt : address_space().find(address);
  if (!allocation && (!of_graph || of_graph->kind != MemoryKind::graph)) return CUDA_ERROR_INVALID_VALUE;
  if (allocation && allocation->kind == MemoryKind::managed) {
    forget_advice(*allocation);
    return free_to_window(*allocation);
  }
  if (allocation && allocation->kind == MemoryKind::device && keep_freed(*allocation, nullptr))
    return Session::current()->failed();
  Call call(wire::Function::cuMemFree_v2);
  call.put<u64>(address);
  return allocation ? call.send() : call.wait();
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
  if (base == nullptr && size == nullptr)
    return CUDA_SUCCESS;  // nothing asked: not even the address is looked at
  const std::optional<Allocation> allocation = address_space().find(address);
  u64 start = 0;
  u64 bytes = 0;
  if (allocation && allocation->kind != MemoryKind::registered) {
    start = allocation->address;
    bytes = allocation->size;
  } else {
    if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
    Call call(wire::Function::cuMemGetAddressRange_v2);
    call.put<u64>(address);
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    start = call.get<u64>();
    bytes = call.get<u64>();
  }
  if (base != nullptr) *base = start;
  if (size != nullptr) *size = bytes;
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
