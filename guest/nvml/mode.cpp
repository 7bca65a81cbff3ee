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

// NVML's answer is about processes that open each other's memory, which crosses sessions. Inside a session
// cuDeviceCanAccessPeer says what works.
nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t,
                                    nvmlGpuP2PStatus_t* status) {
  const nvmlReturn_t result = check_pair(one, other, status);
  if (result == NVML_SUCCESS) *status = one == other ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
  return result;
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
