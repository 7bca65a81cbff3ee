// Modes, and how two vGPUs lie to each other.
#include "guest/nvml/library.hpp"

using namespace gpupool;               // wire::
using namespace gpupool::guest::nvml;  // what the exported functions below are made of

namespace {

// Both handles are ours, or what is wrong.
nvmlReturn_t check_pair(nvmlDevice_t one, nvmlDevice_t other, const void* to) {
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(one, gpu); result != NVML_SUCCESS) return result;
  if (const nvmlReturn_t result = find(other, gpu); result != NVML_SUCCESS) return result;
  return to == nullptr ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

template <typename Info>
nvmlReturn_t no_fabric(nvmlDevice_t device, unsigned int version, Info* info) {
  Info none{};  // all zero: NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
  none.version = version;
  return constant(device, none, info);
}

}  // namespace

extern "C" {

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t* mode) {
  return constant(device, NVML_COMPUTEMODE_DEFAULT, mode);
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t* mode) {
  return number(device, &wire::GpuReport::persistence_enabled, mode);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t* current,
                                  nvmlEnableState_t* pending) {
  const nvmlReturn_t result = number(device, &wire::GpuReport::ecc_enabled, current);
  // A guest cannot change it, so nothing is pending.
  return result == NVML_SUCCESS ? constant(device, *current, pending) : result;
}

nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t* mode) {
  return constant(device, NVML_FEATURE_DISABLED, mode);
}

nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t* active) {
  return constant(device, NVML_FEATURE_DISABLED, active);
}

// vGPUs are not made of MIG instances.
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int* current, unsigned int* pending) {
  const nvmlReturn_t result = constant(device, unsigned{NVML_DEVICE_MIG_DISABLE}, current);
  return result == NVML_SUCCESS ? constant(device, unsigned{NVML_DEVICE_MIG_DISABLE}, pending) : result;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int* is_mig) {
  return constant(device, 0u, is_mig);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int* count) {
  return constant(device, 0u, count);
}

// NVML's other values mean NVIDIA's own vGPU product, with its licences and limits.
nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, nvmlGpuVirtualizationMode_t* mode) {
  return constant(device, NVML_GPU_VIRTUALIZATION_MODE_NONE, mode);
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long* types) {
  return constant(device, 0ull, types);
}

nvmlReturn_t nvmlDeviceGetMultiGpuBoard(nvmlDevice_t device, unsigned int* multi) {
  return constant(device, 0u, multi);
}

nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t one, nvmlDevice_t other, int* same) {
  const nvmlReturn_t result = check_pair(one, other, same);
  if (result == NVML_SUCCESS) *same = one == other ? 1 : 0;
  return result;
}

// The host's topology is not told: the answer promises the least.
nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other,
                                                 nvmlGpuTopologyLevel_t* level) {
  const nvmlReturn_t result = check_pair(one, other, level);
  if (result == NVML_SUCCESS) *level = one == other ? NVML_TOPOLOGY_INTERNAL : NVML_TOPOLOGY_SYSTEM;
  return result;
}

// As the host's NVML says, a constant of how the cards are wired.
nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t kind,
                                    nvmlGpuP2PStatus_t* status) {
  if (const nvmlReturn_t result = check_pair(one, other, status); result != NVML_SUCCESS) return result;
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(one, gpu); result != NVML_SUCCESS) return result;
  const u32 peers[] = {gpu.peers_read, gpu.peers_write, gpu.peers_nvlink, gpu.peers_atomics, gpu.peers_pci};
  if (kind < NVML_P2P_CAPS_INDEX_READ || kind > NVML_P2P_CAPS_INDEX_PCI) return NVML_ERROR_INVALID_ARGUMENT;
  const bool reaches = one == other || (peers[kind] >> other->index & 1) != 0;
  *status = reaches ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
  return NVML_SUCCESS;
}

// A guest is no member of an NVLink fabric across hosts. NCCL asks, and takes an error for worse than a no.
nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t* info) {
  return constant(device, nvmlGpuFabricInfo_t{}, info);  // all zero: NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t* info) {
  if (info == nullptr) return constant<int>(device, 0, nullptr);
  const unsigned int version = info->version;
  if (version == nvmlGpuFabricInfo_v3) return no_fabric(device, version, info);
  if (version == nvmlGpuFabricInfo_v2)  // the shorter struct is all that the caller has
    return no_fabric(device, version, reinterpret_cast<nvmlGpuFabricInfo_v2_t*>(info));
  return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
}

// Each field has a result of its own, and monitoring programs read that one.
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t* values) {
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(device, gpu); result != NVML_SUCCESS) return result;
  if (count < 0 || (values == nullptr && count > 0)) return NVML_ERROR_INVALID_ARGUMENT;
  for (int i = 0; i < count; ++i) values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
  return NVML_SUCCESS;
}

}  // extern "C"
