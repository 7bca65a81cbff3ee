// What is known about an address.
#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

namespace {

template <typename T>
void write(void* out, T value) {
  *static_cast<T*>(out) = value;
}

// Error INVALID_VALUE for attributes that this address does not have.
void read_attribute(void* out, CUpointer_attribute attribute, const Allocation& a, u64 address) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      require(a.context != nullptr);
      return write(out, a.context);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return write<u32>(out, a.host() ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return write<CUdeviceptr>(out, address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      require(a.host());
      return write(out, reinterpret_cast<void*>(address));
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return write<int>(out, a.sync_memops->load() ? 1 : 0);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return write<unsigned long long>(out, a.id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return write<u32>(out, 0);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return write<int>(out, a.device);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return write<int>(out, a.kind == MemoryKind::device ? 1 : 0);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
      return write<CUdeviceptr>(out, a.base);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
      return write<size_t>(out, a.size);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return write<int>(out, a.accessible ? 1 : 0);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      return write<u64>(out, 0);
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
      return write<int>(out, 0);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return write(out, a.accessible ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE
                                     : CU_POINTER_ATTRIBUTE_ACCESS_FLAG_NONE);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return write(out, reinterpret_cast<CUmemoryPool>(a.pool));
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      return write<unsigned long long>(out, a.id);
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return write<int>(out, 0);
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

// What cuPointerGetAttributes writes for memory it does not know: see its page in the driver API's reference.
void write_unknown(void* out, CUpointer_attribute attribute) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return write<u32>(out, 0);
    case CU_POINTER_ATTRIBUTE_CONTEXT:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return write<void*>(out, nullptr);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      return write<u64>(out, 0);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return write<int>(out, -2);
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return write<int>(out, 0);
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

}  // namespace

GPUPOOL_CUDA CUresult cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr address) {
  return call([&] {
    require(out != nullptr);
    const auto found = memory_table().find(address);
    require(found.has_value());
    read_attribute(out, attribute, *found, address);
  });
}

GPUPOOL_CUDA CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute* attributes, void** out,
                                             CUdeviceptr address) {
  return call([&] {
    require(count == 0 || (attributes != nullptr && out != nullptr));
    const auto found = memory_table().find(address);
    for (u32 i = 0; i < count; ++i) {
      require(out[i] != nullptr);
      bool known = found.has_value();
      if (attributes[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER && known) known = found->host();
      if (attributes[i] == CU_POINTER_ATTRIBUTE_CONTEXT && known) known = found->context != nullptr;
      if (known)
        read_attribute(out[i], attributes[i], *found, address);
      else
        write_unknown(out[i], attributes[i]);
    }
  });
}

GPUPOOL_CUDA CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute attribute,
                                            CUdeviceptr address) {
  return call([&] {
    require(value != nullptr && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS);
    const auto found = memory_table().find(address);
    require(found.has_value());
    found->sync_memops->store(*static_cast<const int*>(value) != 0);
  });
}

}  // namespace gpupool::softgpu
