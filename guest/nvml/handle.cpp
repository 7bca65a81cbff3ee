// From a number, a UUID or a PCI bus id to a device handle.
#include <cstdio>

#include "guest/nvml/library.hpp"

using namespace gpupool;               // wire::
using namespace gpupool::guest::nvml;  // what the exported functions below are made of

namespace {

nvmlReturn_t count_devices(unsigned int* count) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *count = static_cast<unsigned int>(snapshot.gpus.size());
  return NVML_SUCCESS;
}

nvmlReturn_t by_index(unsigned int index, nvmlDevice_t* device) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  const nvmlDevice_t found = handle_at(index);
  if (device == nullptr || found == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *device = found;
  return NVML_SUCCESS;
}

// Calls same(gpu) until it says yes.
template <typename F>
nvmlReturn_t by_search(nvmlDevice_t* device, F same) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  if (device == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  for (unsigned int i = 0; i < snapshot.gpus.size(); ++i) {
    if (!same(snapshot.gpus[i])) continue;
    *device = handle_at(i);
    return NVML_SUCCESS;
  }
  return NVML_ERROR_NOT_FOUND;
}

struct PciPlace {
  unsigned int domain = 0, bus = 0, device = 0, function = 0;
  bool operator==(const PciPlace&) const = default;
};

// "domain:bus:device.function", "domain:bus:device" or "bus:device.function", in hexadecimal.
bool parse_pci(const char* text, PciPlace& place) {
  int end = 0;
  if (std::sscanf(text, "%x:%x:%x.%x%n", &place.domain, &place.bus, &place.device, &place.function, &end) ==
          4 &&
      text[end] == 0)
    return true;
  place = {};
  if (std::sscanf(text, "%x:%x:%x%n", &place.domain, &place.bus, &place.device, &end) == 3 && text[end] == 0)
    return true;
  place = {};
  return std::sscanf(text, "%x:%x.%x%n", &place.bus, &place.device, &place.function, &end) == 3 &&
         text[end] == 0;
}

nvmlReturn_t by_pci(const char* text, nvmlDevice_t* device) {
  PciPlace wanted;
  if (text == nullptr || !parse_pci(text, wanted)) {
    Snapshot snapshot;
    const nvmlReturn_t result = known(snapshot);
    return result == NVML_SUCCESS ? NVML_ERROR_INVALID_ARGUMENT : result;
  }
  return by_search(device, [&](const wire::GpuReport& gpu) {
    PciPlace place;
    return parse_pci(text_of(gpu.pci_bus_id).c_str(), place) && place == wanted;
  });
}

std::string uuid_text(const unsigned char* bytes) {
  std::string text = "GPU-";
  char digits[3];
  for (int i = 0; i < NVML_DEVICE_UUID_BINARY_LEN; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    std::snprintf(digits, sizeof digits, "%02x", bytes[i]);
    text += digits;
  }
  return text;
}

}  // namespace

extern "C" {

nvmlReturn_t nvmlDeviceGetCount(unsigned int* count) {
  return count_devices(count);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int* count) {
  return count_devices(count);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t* device) {
  return by_index(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t* device) {
  return by_index(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device) {
  if (uuid == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  return by_search(device, [&](const wire::GpuReport& gpu) { return text_of(gpu.uuid) == uuid; });
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t* uuid, nvmlDevice_t* device) {
  if (uuid == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (uuid->version != nvmlUUID_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  std::string wanted;
  if (uuid->type == NVML_UUID_TYPE_ASCII)
    wanted = text_of(uuid->value.str);
  else if (uuid->type == NVML_UUID_TYPE_BINARY)
    wanted = uuid_text(uuid->value.bytes);
  else
    return NVML_ERROR_INVALID_ARGUMENT;
  return by_search(device, [&](const wire::GpuReport& gpu) { return text_of(gpu.uuid) == wanted; });
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* pci, nvmlDevice_t* device) {
  return by_pci(pci, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* pci, nvmlDevice_t* device) {
  return by_pci(pci, device);
}

}  // extern "C"
