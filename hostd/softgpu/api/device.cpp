// cuInit and everything that describes a device.
#include "hostd/softgpu/api/device.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <vector>

namespace gpupool::softgpu {

void log_line(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  int length = std::snprintf(text, sizeof text, "gpupool software GPU: ");
  length += std::max(
      0, std::vsnprintf(text + length, sizeof text - static_cast<size_t>(length), format, arguments));
  va_end(arguments);
  length = std::min(length, static_cast<int>(sizeof text) - 2);
  for (int i = 0; i < length; ++i)
    if (static_cast<unsigned char>(text[i]) < ' ') text[i] = ' ';  // the text may come from a program's image
  text[length] = '\n';
  // One write, so that lines of several threads do not mix. Nothing can be done about a closed stderr.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, static_cast<size_t>(length) + 1);
}

namespace {

std::atomic<bool> g_initialized{false};
std::vector<std::unique_ptr<Device>>& devices() {
  static auto* list =
      new std::vector<std::unique_ptr<Device>>;  // executor threads outlive static destructors
  return *list;
}

// A whole number from the environment, or the default. Error INVALID_VALUE, with a line, for anything else.
u64 setting(const char* name, u64 otherwise, u64 least, u64 most) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == 0) return otherwise;
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (errno != 0 || *end != 0 || *text == '-' || value < least || value > most) {
    log_line("%s=%s is not a number between %llu and %llu", name, text,
             static_cast<unsigned long long>(least), static_cast<unsigned long long>(most));
    fail(CUDA_ERROR_INVALID_VALUE);
  }
  return value;
}

u32 usable_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<u32>(std::max(1, CPU_COUNT(&set)));
}

// The same on every start on one machine, different between machines and devices.
CUuuid make_uuid(u32 ordinal) {
  std::string seed = "gpupool software GPU/" + std::to_string(ordinal) + "/";
  std::ifstream file("/etc/machine-id");
  std::string machine;
  if (file >> machine) seed += machine;
  CUuuid uuid{};
  for (u64 half = 0; half < 2; ++half) {
    u64 hash = 0xcbf29ce484222325u + half;  // FNV-1a
    for (const char c : seed) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    hash ^= hash >> 29;
    std::memcpy(uuid.bytes + 8 * half, &hash, 8);
  }
  uuid.bytes[6] =
      static_cast<char>((uuid.bytes[6] & 0x0f) | 0x80);  // version 8 of RFC 9562: made by a rule of our own
  uuid.bytes[8] = static_cast<char>((uuid.bytes[8] & 0x3f) | 0x80);
  return uuid;
}

u32 g_threads = 1;
u8 g_leftover = 0;

}  // namespace

bool initialized() {
  return g_initialized.load(std::memory_order_acquire);
}
u32 engine_threads() {
  return g_threads;
}
u8 leftover_byte() {
  return g_leftover;
}
u32 device_count() {
  return static_cast<u32>(devices().size());
}

Device& device_of(int ordinal) {
  require(ordinal >= 0 && static_cast<u32>(ordinal) < device_count(), CUDA_ERROR_INVALID_DEVICE);
  return *devices()[static_cast<u32>(ordinal)];
}

void make_devices() {
  const u64 count = setting("GPUPOOL_SOFTGPU_DEVICES", 1, 1, kMaxDevices);
  const u64 memory_mib = setting("GPUPOOL_SOFTGPU_MEMORY_MIB", 4096, 16, 1u << 20);
  g_threads = static_cast<u32>(setting("GPUPOOL_SOFTGPU_THREADS", usable_cpus(), 1, 1024));
  g_leftover = static_cast<u8>(setting("GPUPOOL_SOFTGPU_LEFTOVER", 0, 0, 255));
  for (u32 i = 0; i < count; ++i) {
    auto device = std::make_unique<Device>();
    device->ordinal = static_cast<int>(i);
    device->name = "gpupool software GPU";
    device->uuid = make_uuid(i);
    device->pci_bus = static_cast<int>(0xf0 + i);
    char text[16];
    std::snprintf(text, sizeof text, "0000:%02x:00.0", static_cast<u32>(device->pci_bus) & 0xffu);
    device->pci_bus_id = text;
    device->memory_bytes = memory_mib << 20;
    device->multiprocessors = g_threads;
    devices().push_back(std::move(device));
  }
}

GPUPOOL_CUDA CUresult cuInit(unsigned int flags) {
  return call_before_init([&] {
    require(flags == 0);
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    if (g_initialized.load(std::memory_order_relaxed)) return;
    make_devices();
    g_initialized.store(true, std::memory_order_release);
  });
}

GPUPOOL_CUDA CUresult cuDriverGetVersion(int* version) {
  return call_before_init([&] {
    require(version != nullptr);
    *version = kDriverVersion;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetCount(int* count) {
  return call([&] {
    require(count != nullptr);
    *count = static_cast<int>(device_count());
  });
}

GPUPOOL_CUDA CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call([&] {
    require(device != nullptr);
    *device = device_of(ordinal).ordinal;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  return call([&] {
    require(name != nullptr && length > 0);
    std::snprintf(name, static_cast<size_t>(length), "%s", device_of(device).name.c_str());
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  return call([&] {
    require(uuid != nullptr);
    *uuid = device_of(device).uuid;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  return call([&] {
    require(uuid != nullptr);
    *uuid = device_of(device).uuid;
  });
}

GPUPOOL_CUDA CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  return call([&] {
    require(bytes != nullptr);
    *bytes = device_of(device).memory_bytes;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return call([&] {
    require(value != nullptr);
    const std::optional<int> answer = device_of(device).attribute(static_cast<int>(attribute));
    require(answer.has_value());
    *value = *answer;
  });
}

GPUPOOL_CUDA CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  return call([&] {
    require(major != nullptr && minor != nullptr);
    device_of(device);
    *major = kComputeMajor;
    *minor = kComputeMinor;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
  return call([&] {
    require(text != nullptr && length > 0);
    const std::string& id = device_of(device).pci_bus_id;
    require(static_cast<u64>(length) > id.size());
    std::memcpy(text, id.c_str(), id.size() + 1);
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetByPCIBusId(CUdevice* device, const char* text) {
  return call([&] {
    require(device != nullptr && text != nullptr);
    u32 domain = 0, bus = 0, slot = 0, function = 0;
    if (std::sscanf(text, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
      domain = 0;
      require(std::sscanf(text, "%x:%x.%x", &bus, &slot, &function) >= 2);
    }
    for (u32 i = 0; i < device_count(); ++i) {
      const Device& candidate = device_of(static_cast<int>(i));
      if (domain == 0 && static_cast<u32>(candidate.pci_bus) == bus && slot == 0 && function == 0) {
        *device = candidate.ordinal;
        return;
      }
    }
    fail(CUDA_ERROR_INVALID_DEVICE);
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetProperties(CUdevprop* properties, CUdevice device) {
  return call([&] {
    require(properties != nullptr);
    device_of(device);
    *properties = CUdevprop{};
    properties->maxThreadsPerBlock = kMaxThreadsPerBlock;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->sharedMemPerBlock = kSharedPerBlock;
    properties->totalConstantMemory = 65536;
    properties->SIMDWidth = kWarpSize;
    properties->memPitch = 2147483647;
    properties->regsPerBlock = kRegistersPerSm;
    properties->clockRate = 1000000;
    properties->textureAlign = 512;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetExecAffinitySupport(int* supported, CUexecAffinityType type,
                                                     CUdevice device) {
  return call([&] {
    require(supported != nullptr && type == CU_EXEC_AFFINITY_TYPE_SM_COUNT);
    device_of(device);
    *supported = 0;
  });
}

GPUPOOL_CUDA CUresult cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  return call([&] {
    require(can != nullptr);
    *can = device_of(device).ordinal != device_of(peer).ordinal ? 1 : 0;
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetP2PAttribute(int* value, CUdevice_P2PAttribute attribute, CUdevice from,
                                              CUdevice to) {
  return call([&] {
    require(value != nullptr);
    require(device_of(from).ordinal != device_of(to).ordinal, CUDA_ERROR_INVALID_DEVICE);
    switch (attribute) {
      case CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK:
        *value = 0;
        return;
      case CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED:
      case CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED:
      case CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED:
        *value = 1;
        return;
      case CU_DEVICE_P2P_ATTRIBUTE_ONLY_PARTIAL_NATIVE_ATOMIC_SUPPORTED:
        *value = 0;
        return;
      default:
        fail(CUDA_ERROR_INVALID_VALUE);
    }
  });
}

}  // namespace gpupool::softgpu
