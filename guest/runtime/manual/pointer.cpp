// Pointer attributes, answered from the address table. Only an address that is device memory and still not in
// the table (a variable nobody asked for by name, say) costs a message.
#include <cstring>

#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

struct Facts {
  u64 pointer = 0;
  std::optional<Allocation> allocation;
  std::optional<Reservation> reservation;  // when the pointer lies in one, mapped or not

  [[nodiscard]] bool known() const { return allocation || reservation; }
};

Facts facts_of(u64 pointer) {
  Facts facts{pointer, address_space().find(pointer), address_space().find_reservation(pointer)};
  if (facts.known() || !address_space().is_device(pointer)) return facts;
  Context* context = current_context();
  if (context == nullptr) return facts;
  Call call(wire::Function::cuMemGetAddressRange_v2);
  call.put<u64>(pointer);
  if (call.wait() != CUDA_SUCCESS) return facts;
  Allocation found;
  found.kind = MemoryKind::global;
  found.address = call.get<u64>();
  found.size = call.get<u64>();
  found.context = context;
  found.device = context->device;
  facts.allocation = found;
  return facts;
}

template <typename T>
CUresult write(void* data, T value) {
  std::memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

// Memory of cuMemAllocAsync is entered without its pool, which nobody asks for: it is the device's current
// one.
u64 pool_of(const Allocation& memory) {
  CUmemoryPool pool = nullptr;
  if (memory.pool != 0 || memory.kind != MemoryKind::stream_ordered) return memory.pool;
  return api::cuDeviceGetMemPool(&pool, memory.device) == CUDA_SUCCESS ? reinterpret_cast<u64>(pool) : 0;
}

// How the driver maps memory: in blocks of 2 MiB, of pools in blocks of 32 MiB (measured on driver 580). Host
// memory begins a mapping of its own.
struct Mapping {
  u64 address;
  u64 size;
};

Mapping mapping_of(const Allocation& memory) {
  constexpr u64 kPoolUnit = 32u << 20;
  const u64 unit = memory.kind == MemoryKind::stream_ordered ? kPoolUnit : kAddressUnit;
  const u64 start = memory.on_host() ? memory.address : memory.address / unit * unit;
  return {start, (memory.end() - start + unit - 1) / unit * unit};
}

// An attribute that the memory has no value for: the driver writes zero and still reports an error.
CUresult write_none(void* data) {
  write<u64>(data, 0);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult range_attribute(const Facts& facts, CUpointer_attribute attribute, void* data) {
  const bool reserved = facts.reservation.has_value();
  const bool start = attribute == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR;
  if (reserved) return write<u64>(data, start ? facts.reservation->address : facts.reservation->size);
  return write<u64>(data, start ? facts.allocation->address : facts.allocation->size);
}

CUresult memory_attribute(const Allocation& memory, u64 pointer, CUpointer_attribute attribute, void* data) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:  // memory of a pool belongs to the device
      return write(data, reinterpret_cast<CUcontext>(
                             memory.kind == MemoryKind::stream_ordered ? nullptr : memory.context));
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return write<u32>(data, memory.on_host() ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      if (memory.kind == MemoryKind::registered && memory.host_map == 0) return CUDA_ERROR_INVALID_VALUE;
      return memory.access == 0 ? write_none(data) : write<u64>(data, pointer);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return memory.on_host() || memory.kind == MemoryKind::managed ? write<u64>(data, pointer)
                                                                    : write_none(data);
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return write<u32>(data, memory.sync_memops);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      return write<u64>(data, memory.id);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return write<i32>(data, memory.device);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      return write<u64>(data, memory.handle_types);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return write<u32>(data, memory.access);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return write<u64>(data, pool_of(memory));
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
      return write<u64>(data, mapping_of(memory).size);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
      return write<u64>(data, mapping_of(memory).address);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return write<u32>(data, 1);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return write<u32>(data, memory.kind == MemoryKind::managed);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return write<u32>(data, memory.kind == MemoryKind::device);
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:  // no adapter in the guest reaches the host's GPU
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return write<u32>(data, 0);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult attribute_of(const Facts& facts, CUpointer_attribute attribute, void* data) {
  if (!facts.allocation) return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR || attribute == CU_POINTER_ATTRIBUTE_RANGE_SIZE)
    return range_attribute(facts, attribute, data);
  return memory_attribute(*facts.allocation, facts.pointer, attribute, data);
}

// What cuPointerGetAttributes leaves where an attribute has no value (its description in cuda.h: "default
// NULL values"). For an address without memory the driver gives it back as the host pointer, and knows a
// range only if it is reserved (measured on driver 580).
void write_nothing(const Facts& facts, CUpointer_attribute attribute, void* data) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      if (facts.reservation) range_attribute(facts, attribute, data);
      return;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      write<u64>(data, facts.allocation ? 0 : facts.pointer);
      return;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      write<i32>(data, CU_DEVICE_INVALID);
      return;
    case CU_POINTER_ATTRIBUTE_CONTEXT:
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      write<u64>(data, 0);
      return;
    default:
      write<u32>(data, 0);
      return;
  }
}

}  // namespace

namespace api {

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_POINTER_ATTRIBUTE_P2P_TOKENS) return CUDA_ERROR_NOT_SUPPORTED;
  const Facts facts = facts_of(pointer);
  return attribute_of(facts, attribute, data);
}

CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute* attributes, void** data,
                                CUdeviceptr pointer) {
  if (count == 0 || attributes == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < count; ++i) {
    const int attribute = attributes[i];
    if (attribute < CU_POINTER_ATTRIBUTE_CONTEXT ||
        attribute > CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE ||
        attribute == CU_POINTER_ATTRIBUTE_P2P_TOKENS || data[i] == nullptr)
      return CUDA_ERROR_INVALID_VALUE;
  }
  const Facts facts = facts_of(pointer);
  for (unsigned i = 0; i < count; ++i)
    if (attribute_of(facts, attributes[i], data[i]) != CUDA_SUCCESS)
      write_nothing(facts, attributes[i], data[i]);
  return CUDA_SUCCESS;
}

CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (value == nullptr || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) return CUDA_ERROR_INVALID_VALUE;
  if (!address_space().find(pointer)) return CUDA_ERROR_INVALID_VALUE;
  u32 set = 0;
  std::memcpy(&set, value, sizeof set);
  address_space().set_sync_memops(pointer, set != 0);
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
