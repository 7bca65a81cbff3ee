// Device queries. All are answered from what the worker said once, at cuInit.
#include "guest/runtime/manual/device.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

struct VisibleDevices {
  std::array<u32, wire::kMaxDevices> session_index{};
  std::array<const wire::DeviceInfo*, wire::kMaxDevices> info{};
  std::atomic<u32> count{0};  // stored last
  bool host_memory_mapped = false;
};
VisibleDevices g_visible;

// What a program may not rely on when its calls are executed in another process: the device would reach the
// worker's memory or descriptors, not the program's own.
bool reads_zero(int attribute) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST:
    case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS:
    case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_HANDLE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_KMT_HANDLE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING:
    case CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_ALLOC_DMA_BUF_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_TIMELINE_SEMAPHORE_INTEROP_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_MULTI_DEVICE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MPS_ENABLED:
    case CU_DEVICE_ATTRIBUTE_D3D12_CIG_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_VULKAN_CIG_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_ALGORITHM_MASK:
    case CU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_MAXIMUM_LENGTH:
    case CU_DEVICE_ATTRIBUTE_SPARSE_CUDA_ARRAY_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_MULTINODE_IPC_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      return true;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
      return !g_visible.host_memory_mapped;
    default:
      return false;
  }
}

// "[domain:]bus:device.function" or "domain:bus:device", hexadecimal, as the driver takes them.
bool parse_pci_bus_id(const char* text, u32& domain, u32& bus, u32& device) {
  u32 a = 0;
  u32 b = 0;
  u32 c = 0;
  if (std::sscanf(text, "%x:%x:%x", &a, &b, &c) == 3) {
    domain = a;
    bus = b;
    device = c;
    return true;
  }
  if (std::sscanf(text, "%x:%x.%x", &a, &b, &c) == 3) {
    domain = 0;
    bus = a;
    device = b;
    return true;
  }
  return false;
}

}  // namespace

CUresult open_devices(const Session& session) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (g_visible.count.load(std::memory_order_acquire) != 0) return CUDA_SUCCESS;
  std::vector<u32> chosen;
  const CUresult result = choose_visible(session.devices(), std::getenv("CUDA_VISIBLE_DEVICES"),
                                         std::getenv("CUDA_DEVICE_ORDER"), chosen);
  if (result != CUDA_SUCCESS) return result;
  g_visible.host_memory_mapped = session.shared_memory();
  for (size_t i = 0; i < chosen.size(); ++i) {
    g_visible.session_index[i] = chosen[i];
    g_visible.info[i] = &session.devices()[chosen[i]];
  }
  g_visible.count.store(static_cast<u32>(chosen.size()), std::memory_order_release);
  return CUDA_SUCCESS;
}

u32 device_count() {
  return g_visible.count.load(std::memory_order_acquire);
}

int session_device(CUdevice device) {
  return static_cast<u32>(device) < device_count() ? static_cast<int>(g_visible.session_index[device]) : -1;
}

const wire::DeviceInfo* device_info(CUdevice device) {
  return static_cast<u32>(device) < device_count() ? g_visible.info[device] : nullptr;
}

bool device_attribute(CUdevice device, int attribute, int& value) {
  const wire::DeviceInfo* info = device_info(device);
  if (info == nullptr || attribute < 1 || attribute >= static_cast<int>(wire::kDeviceAttributes))
    return false;
  if (info->attributes[attribute] == wire::kAttributeUnknown) return false;
  value = reads_zero(attribute) ? 0 : info->attributes[attribute];
  if (attribute == CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES)
    value &= CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;  // no fabric
  // Managed memory is window memory whatever the GPU could do by itself: there on shared memory only, and
  // then for program and kernels at the same time.
  if (attribute == CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY ||
      attribute == CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS)
    value = g_visible.host_memory_mapped ? 1 : 0;
  return true;
}

namespace api {

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(ordinal) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_count() == 0) return CUDA_ERROR_NOT_INITIALIZED;  // cuInit said NO_DEVICE
  *count = static_cast<int>(device_count());
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int len, CUdevice dev) {
  if (name == nullptr || len <= 0) return CUDA_ERROR_INVALID_VALUE;
  const wire::DeviceInfo* info = device_info(dev);
  if (info == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const size_t length = std::min(strnlen(info->name, sizeof info->name), static_cast<size_t>(len) - 1);
  std::memcpy(name, info->name, length);
  name[length] = '\0';
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice dev) {
  if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const wire::DeviceInfo* info = device_info(dev);
  if (info == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  std::memcpy(uuid->bytes, info->uuid, sizeof uuid->bytes);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice dev) {
  return api::cuDeviceGetUuid_v2(uuid, dev);
}

CUresult cuDeviceGetLuid(char* luid, unsigned int* mask, CUdevice dev) {
  if (luid == nullptr || mask == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(dev) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  return CUDA_ERROR_NOT_SUPPORTED;  // LUIDs exist on Windows only; the driver answers the same on Linux
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice dev) {
  if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const wire::DeviceInfo* info = device_info(dev);
  if (info == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = info->total_memory_bytes;
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(unsigned int* bytes, CUdevice dev) {
  size_t all = 0;
  if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = api::cuDeviceTotalMem_v2(&all, dev); result != CUDA_SUCCESS) return result;
  *bytes = static_cast<unsigned int>(std::min<size_t>(all, ~0u));
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice dev) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(dev) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  return device_attribute(dev, static_cast<int>(attribute), *value) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice dev) {
  if (major == nullptr || minor == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result =
          api::cuDeviceGetAttribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, dev);
      result != CUDA_SUCCESS)
    return result;
  return api::cuDeviceGetAttribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, dev);
}

CUresult cuDeviceGetProperties(CUdevprop* prop, CUdevice dev) {
  if (prop == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const wire::DeviceInfo* info = device_info(dev);
  if (info == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const i32* all = info->attributes;
  *prop = CUdevprop{
      .maxThreadsPerBlock = all[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK],
      .maxThreadsDim = {all[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X], all[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y],
                        all[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z]},
      .maxGridSize = {all[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X], all[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y],
                      all[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z]},
      .sharedMemPerBlock = all[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK],
      .totalConstantMemory = all[CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY],
      .SIMDWidth = all[CU_DEVICE_ATTRIBUTE_WARP_SIZE],
      .memPitch = all[CU_DEVICE_ATTRIBUTE_MAX_PITCH],
      .regsPerBlock = all[CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK],
      .clockRate = all[CU_DEVICE_ATTRIBUTE_CLOCK_RATE],
      .textureAlign = all[CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT],
  };
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char* text, int len, CUdevice dev) {
  if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const wire::DeviceInfo* info = device_info(dev);
  if (info == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const size_t length = strnlen(info->pci_bus_id, sizeof info->pci_bus_id - 1);
  if (len < 0 || static_cast<size_t>(len) <= length) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(text, info->pci_bus_id, length);
  text[length] = '\0';
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetByPCIBusId(CUdevice* dev, const char* text) {
  u32 domain = 0;
  u32 bus = 0;
  u32 device = 0;
  if (dev == nullptr || text == nullptr || !parse_pci_bus_id(text, domain, bus, device))
    return CUDA_ERROR_INVALID_VALUE;
  for (CUdevice i = 0; i < static_cast<int>(device_count()); ++i) {
    const wire::DeviceInfo* info = device_info(i);
    if (info == nullptr) continue;
    const i32* all = info->attributes;
    if (static_cast<u32>(all[CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID]) != domain ||
        static_cast<u32>(all[CU_DEVICE_ATTRIBUTE_PCI_BUS_ID]) != bus ||
        static_cast<u32>(all[CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID]) != device)
      continue;
    *dev = i;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetExecAffinitySupport(int* supported, CUexecAffinityType, CUdevice dev) {
  if (supported == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(dev) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *supported = 0;  // needs MPS
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
