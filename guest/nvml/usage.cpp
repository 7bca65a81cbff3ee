// What this guest uses of a vGPU. Asked of the host each time; never about anybody else.
#include <algorithm>
#include <ctime>

#include "guest/nvml/library.hpp"

using namespace gpupool;               // wire::
using namespace gpupool::guest::nvml;  // what the exported functions below are made of

namespace {

using Processes = std::vector<wire::ProcessReport>;

// `used` may be above the quota as long as quotas are not enforced: free memory is then 0.
unsigned long long free_bytes(const wire::GpuReport& gpu, u64 reserved) {
  const u64 taken = reserved + gpu.used_bytes;
  return taken < gpu.total_bytes ? gpu.total_bytes - taken : 0;
}

void fill(const wire::ProcessReport& from, nvmlProcessInfo_v1_t& to) {
  to.pid = from.pid;
  to.usedGpuMemory = from.used_bytes;
}

void fill(const wire::ProcessReport& from, nvmlProcessInfo_v2_t& to) {
  to.pid = from.pid;
  to.usedGpuMemory = from.used_bytes;
  to.gpuInstanceId = wire::kUnknown;  // "set to 0xFFFFFFFF otherwise" than with MIG (nvml.h)
  to.computeInstanceId = wire::kUnknown;
}

// NVML's way to return a list: with too little room, the number there is and INSUFFICIENT_SIZE.
template <typename Info>
nvmlReturn_t list(const Processes& processes, unsigned int* count, Info* infos) {
  const unsigned int room = *count;
  *count = static_cast<unsigned int>(processes.size());
  if (processes.empty()) return NVML_SUCCESS;
  if (room < processes.size()) return NVML_ERROR_INSUFFICIENT_SIZE;
  if (infos == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  for (size_t i = 0; i < processes.size(); ++i) fill(processes[i], infos[i]);
  return NVML_SUCCESS;
}

template <typename Info>
nvmlReturn_t list_compute(nvmlDevice_t device, unsigned int* count, Info* infos) {
  wire::GpuReport gpu;
  Processes processes;
  if (count == nullptr) return constant<int>(device, 0, nullptr);
  const nvmlReturn_t result = find_fresh(device, gpu, processes);
  return result == NVML_SUCCESS ? list(processes, count, infos) : result;
}

// A guest has no graphics through this library and no MPS.
nvmlReturn_t list_none(nvmlDevice_t device, unsigned int* count) {
  return constant(device, 0u, count);
}

}  // namespace

extern "C" {

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory) {
  wire::GpuReport gpu;
  Processes processes;
  if (memory == nullptr) return constant<int>(device, 0, nullptr);
  if (const nvmlReturn_t result = find_fresh(device, gpu, processes); result != NVML_SUCCESS) return result;
  memory->total = gpu.total_bytes;
  memory->used = gpu.used_bytes;
  memory->free = free_bytes(gpu, 0);
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* memory) {
  wire::GpuReport gpu;
  Processes processes;
  if (memory == nullptr) return constant<int>(device, 0, nullptr);
  if (memory->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  if (const nvmlReturn_t result = find_fresh(device, gpu, processes); result != NVML_SUCCESS) return result;
  memory->total = gpu.total_bytes;
  memory->reserved = gpu.reserved_bytes;
  memory->used = gpu.used_bytes;
  memory->free = free_bytes(gpu, gpu.reserved_bytes);
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* utilization) {
  wire::GpuReport gpu;
  Processes processes;
  if (utilization == nullptr) return constant<int>(device, 0, nullptr);
  if (const nvmlReturn_t result = find_fresh(device, gpu, processes); result != NVML_SUCCESS) return result;
  if (gpu.utilization_percent == wire::kUnknown) return NVML_ERROR_NOT_SUPPORTED;
  utilization->gpu = gpu.utilization_percent;
  utilization->memory = 0;  // the time that memory was busy is not measured, and has no way to say so
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t* samples,
                                             unsigned int* count, unsigned long long) {
  wire::GpuReport gpu;
  Processes processes;
  if (count == nullptr) return constant<int>(device, 0, nullptr);
  if (const nvmlReturn_t result = find_fresh(device, gpu, processes); result != NVML_SUCCESS) return result;
  std::erase_if(processes,
                [](const wire::ProcessReport& one) { return one.utilization_percent == wire::kUnknown; });
  const unsigned int room = *count;
  *count = static_cast<unsigned int>(processes.size());
  if (processes.empty()) return NVML_ERROR_NOT_FOUND;  // as documented for "no process had a context"
  if (samples == nullptr || room < processes.size()) return NVML_ERROR_INSUFFICIENT_SIZE;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  for (size_t i = 0; i < processes.size(); ++i) {
    samples[i] = nvmlProcessUtilizationSample_t{};
    samples[i].pid = processes[i].pid;
    samples[i].timeStamp = static_cast<unsigned long long>(now.tv_sec) * 1'000'000 +
                           static_cast<unsigned long long>(now.tv_nsec) / 1000;
    samples[i].smUtil = processes[i].utilization_percent;
  }
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int* count,
                                                  nvmlProcessInfo_v1_t* infos) {
  return list_compute(device, count, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int* count,
                                                     nvmlProcessInfo_v2_t* infos) {
  return list_compute(device, count, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int* count,
                                                     nvmlProcessInfo_t* infos) {
  return list_compute(device, count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int* count,
                                                   nvmlProcessInfo_v1_t*) {
  return list_none(device, count);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int* count,
                                                      nvmlProcessInfo_v2_t*) {
  return list_none(device, count);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int* count,
                                                      nvmlProcessInfo_t*) {
  return list_none(device, count);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int* count,
                                                     nvmlProcessInfo_v1_t*) {
  return list_none(device, count);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int* count,
                                                        nvmlProcessInfo_v2_t*) {
  return list_none(device, count);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int* count,
                                                        nvmlProcessInfo_t*) {
  return list_none(device, count);
}

}  // extern "C"
