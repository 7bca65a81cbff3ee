// What a vGPU is: name, numbers, place on the bus, constants of the model.
#include <cstdio>

#include "guest/nvml/library.hpp"

using namespace gpupool;               // wire::
using namespace gpupool::guest::nvml;  // what the exported functions below are made of

namespace {

struct PciPlace {
  unsigned int domain = 0, bus = 0, device = 0;
};

PciPlace place_of(const wire::GpuReport& gpu) {
  PciPlace place;
  // A card without a place (there is none such on a bus) keeps zeroes.
  static_cast<void>(
      std::sscanf(text_of(gpu.pci_bus_id).c_str(), "%x:%x:%x", &place.domain, &place.bus, &place.device));
  return place;
}

// What the host does not know of it stays 0, as for a card without such an id.
unsigned int or_zero(unsigned int value) {
  return value == wire::kUnknown ? 0 : value;
}

nvmlReturn_t pci_info(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(device, gpu); result != NVML_SUCCESS) return result;
  if (pci == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  const PciPlace place = place_of(gpu);
  *pci = nvmlPciInfo_t{};
  pci->domain = place.domain;
  pci->bus = place.bus;
  pci->device = place.device;
  pci->pciDeviceId = or_zero(gpu.pci_device_id);
  pci->pciSubSystemId = or_zero(gpu.pci_subsystem_id);
  std::snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", place.domain, place.bus & 0xff,
                place.device & 0xff);
  std::snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", place.domain & 0xffff,
                place.bus & 0xff, place.device & 0xff);
  return NVML_SUCCESS;
}

nvmlReturn_t attributes(nvmlDevice_t device, nvmlDeviceAttributes_t* to) {
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(device, gpu); result != NVML_SUCCESS) return result;
  if (to == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  // NVIDIA's NVML answers for MIG devices only, and so do we where the host does not know the number.
  if (gpu.multiprocessors == wire::kUnknown) return NVML_ERROR_NOT_SUPPORTED;
  *to = nvmlDeviceAttributes_t{};
  to->multiprocessorCount = gpu.multiprocessors;
  to->memorySizeMB = gpu.total_bytes >> 20;
  return NVML_SUCCESS;
}

}  // namespace

extern "C" {

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char* name, unsigned int length) {
  wire::GpuReport gpu;
  const nvmlReturn_t result = find(device, gpu);
  return result == NVML_SUCCESS ? copy_text(text_of(gpu.name), name, length) : result;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char* uuid, unsigned int length) {
  wire::GpuReport gpu;
  const nvmlReturn_t result = find(device, gpu);
  return result == NVML_SUCCESS ? copy_text(text_of(gpu.uuid), uuid, length) : result;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int* index) {
  wire::GpuReport gpu;
  const nvmlReturn_t result = find(device, gpu);
  return result == NVML_SUCCESS ? constant(device, device->index, index) : result;
}

// There is no /dev/nvidiaN in a guest; the number that it would have.
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int* minor) {
  return nvmlDeviceGetIndex(device, minor);
}

nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t* brand) {
  return number(device, &wire::GpuReport::brand, brand);
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t* architecture) {
  return number(device, &wire::GpuReport::architecture, architecture);
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int* major, int* minor) {
  if (major == nullptr) return constant(device, 0, major);
  const nvmlReturn_t result = number(device, &wire::GpuReport::compute_minor, minor);
  return result == NVML_SUCCESS ? number(device, &wire::GpuReport::compute_major, major) : result;
}

nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  return pci_info(device, pci);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  return pci_info(device, pci);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  return pci_info(device, pci);
}

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t* pci) {
  nvmlPciInfo_t basic{};
  if (pci == nullptr) return constant<int>(device, 0, nullptr);
  if (const nvmlReturn_t result = pci_info(device, &basic); result != NVML_SUCCESS) return result;
  if (pci->version != nvmlPciInfoExt_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  pci->domain = basic.domain;
  pci->bus = basic.bus;
  pci->device = basic.device;
  pci->pciDeviceId = basic.pciDeviceId;
  pci->pciSubSystemId = basic.pciSubSystemId;
  // "3D controller" of the PCI code and id assignment specification: what cards without a display are.
  pci->baseClass = 0x03;
  pci->subClass = 0x02;
  std::memcpy(pci->busId, basic.busId, sizeof pci->busId);
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t* to) {
  return attributes(device, to);
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t* to) {
  return attributes(device, to);
}

nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned int* cores) {
  return number(device, &wire::GpuReport::cores, cores);
}

nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned int* bits) {
  return number(device, &wire::GpuReport::memory_bus_bits, bits);
}

// The highest clocks are a constant of the model; the present ones tell of a neighbour's load.
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int* mhz) {
  switch (type) {
    case NVML_CLOCK_GRAPHICS:
    case NVML_CLOCK_SM:
      return number(device, &wire::GpuReport::max_sm_clock_mhz, mhz);
    case NVML_CLOCK_MEM:
      return number(device, &wire::GpuReport::max_memory_clock_mhz, mhz);
    default:
      return unsupported("nvmlDeviceGetMaxClockInfo");
  }
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int* generation) {
  return number(device, &wire::GpuReport::max_pcie_generation, generation);
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int* width) {
  return number(device, &wire::GpuReport::max_pcie_width, width);
}

}  // extern "C"
