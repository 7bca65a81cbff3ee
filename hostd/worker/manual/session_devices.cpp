// Tells the client about its vGPUs, once, so that device queries never need a message. Nothing here makes a
// context: that would cost a program that only asks for the device count as much as one that computes.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "wire/cpp/device_info.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {
namespace {

CUresult describe(const DriverApi& driver, CUdevice device, wire::DeviceInfo& info) {
  if (const CUresult result = driver.cuDeviceGetName(info.name, sizeof info.name, device);
      result != CUDA_SUCCESS)
    return result;
  CUuuid uuid{};
  if (const CUresult result = driver.cuDeviceGetUuid_v2(&uuid, device); result != CUDA_SUCCESS) return result;
  std::memcpy(info.uuid, uuid.bytes, sizeof info.uuid);
  if (const CUresult result = driver.cuDeviceGetPCIBusId(info.pci_bus_id, sizeof info.pci_bus_id, device);
      result != CUDA_SUCCESS)
    return result;
  size_t bytes = 0;
  if (const CUresult result = driver.cuDeviceTotalMem_v2(&bytes, device); result != CUDA_SUCCESS)
    return result;
  info.total_memory_bytes = bytes;
  for (u32 i = 0; i < wire::kDeviceAttributes; ++i) {
    int value = 0;
    const CUresult result = driver.cuDeviceGetAttribute(&value, static_cast<CUdevice_attribute>(i), device);
    info.attributes[i] = result == CUDA_SUCCESS ? value : wire::kAttributeUnknown;
  }
  // Properties of contexts: answered when one is made.
  info.least_stream_priority = 0;
  info.greatest_stream_priority = 0;
  std::fill(std::begin(info.limits), std::end(info.limits), ~u64{0});
  return CUDA_SUCCESS;
}

}  // namespace

CUresult handle_session_devices(Worker& worker, Request& request) {
  request.in.finish();
  std::vector<wire::DeviceInfo> devices(std::min<size_t>(worker.devices.size(), wire::kMaxDevices));
  for (size_t i = 0; i < devices.size(); ++i)
    if (const CUresult result = describe(worker.driver, worker.devices[i], devices[i]);
        result != CUDA_SUCCESS)
      return result;
  request.out->put(worker.caps.streams);
  request.out->put(worker.caps.handles);
  request.out->put_array(devices.data(), devices.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
