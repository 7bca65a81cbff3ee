// Virtual memory management: reserving addresses, giving them memory, saying who may use it.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <set>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/physical.hpp"

namespace gpupool::softgpu {

namespace {

struct Mapping {
  u64 size = 0;
  std::shared_ptr<Physical> memory;
  std::set<int> devices;  // that may use it
};

struct Vmm {
  std::mutex mutex;
  std::map<u64, u64> reservations;  // base to size
  std::map<u64, Mapping> mappings;  // by base
  u64 next = 0x3c00'0000'0000;      // where we place reservations that name no address
};

Vmm& vmm() {
  static auto* only = new Vmm;
  return *only;
}

Registry<Physical, CUmemGenericAllocationHandle>& physicals() {
  static auto* registry = new Registry<Physical, CUmemGenericAllocationHandle>(14);
  return *registry;
}

bool reserve_at(u64 address, u64 size) {
  void* got = mmap(reinterpret_cast<void*>(address), size, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got == MAP_FAILED) return false;
  if (reinterpret_cast<u64>(got) == address) return true;
  munmap(got, size);  // a kernel before 4.17 took the address for a hint
  return false;
}

// The address asked for if it is free, else one of ours.
u64 reserve(Vmm& state, u64 size, u64 alignment, u64 wanted) {
  if (wanted != 0 && reserve_at(wanted, size)) return wanted;
  for (u32 i = 0; i < 1024; ++i) {
    const u64 address = round_up(state.next, alignment);
    if (address + size >= 1ull << 47) break;
    state.next = address + size;
    if (reserve_at(address, size)) return address;
  }
  fail(CUDA_ERROR_OUT_OF_MEMORY);
}

bool inside_reservation(const Vmm& state, u64 address, u64 size) {
  auto next = state.reservations.upper_bound(address);
  if (next == state.reservations.begin()) return false;
  const auto& [base, bytes] = *std::prev(next);
  return address >= base && address - base <= bytes && size <= bytes - (address - base);
}

// The mappings that fill [address, +size) exactly. Error INVALID_VALUE when they do not.
std::vector<u64> mappings_in(const Vmm& state, u64 address, u64 size) {
  std::vector<u64> result;
  u64 at = address;
  for (auto mapping = state.mappings.find(address); at < address + size; ++mapping) {
    require(mapping != state.mappings.end() && mapping->first == at);
    result.push_back(at);
    at += mapping->second.size;
  }
  require(at == address + size && !result.empty());
  return result;
}

void require_range(u64 address, u64 size) {
  require(address != 0 && size != 0 && address % kGranularity == 0 && size % kGranularity == 0);
  require(size < 1ull << 47 && address < 1ull << 47);
}

Device& device_at(const CUmemLocation& location) {
  require(location.type == CU_MEM_LOCATION_TYPE_DEVICE);
  return device_of(location.id);
}

// Back to a reservation without memory.
void clear_mapping(u64 address, u64 size) {
  if (mmap(reinterpret_cast<void*>(address), size, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
    fail(CUDA_ERROR_OPERATING_SYSTEM);
}

}  // namespace

GPUPOOL_CUDA CUresult cuMemGetAllocationGranularity(size_t* granularity,
                                                    const CUmemAllocationProp* properties,
                                                    CUmemAllocationGranularity_flags which) {
  return call([&] {
    require(granularity != nullptr && properties != nullptr &&
            properties->type == CU_MEM_ALLOCATION_TYPE_PINNED);
    require(which == CU_MEM_ALLOC_GRANULARITY_MINIMUM || which == CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    device_at(properties->location);
    *granularity = kGranularity;
  });
}

GPUPOOL_CUDA CUresult cuMemAddressReserve(CUdeviceptr* out, size_t size, size_t alignment, CUdeviceptr wanted,
                                          unsigned long long flags) {
  return call([&] {
    require(out != nullptr && flags == 0 && size != 0 && size % kGranularity == 0 && size < 1ull << 47);
    require((alignment & (alignment - 1)) == 0 && alignment < 1ull << 46);
    const u64 step = std::max<u64>(alignment, kGranularity);
    if (wanted % step != 0 || wanted >= 1ull << 47) wanted = 0;
    Vmm& state = vmm();
    const std::lock_guard lock(state.mutex);
    const u64 address = reserve(state, size, step, wanted);
    state.reservations[address] = size;
    *out = address;
  });
}

GPUPOOL_CUDA CUresult cuMemAddressFree(CUdeviceptr address, size_t size) {
  return call([&] {
    Vmm& state = vmm();
    const std::lock_guard lock(state.mutex);
    const auto found = state.reservations.find(address);
    require(found != state.reservations.end() && found->second == size);
    const auto mapped = state.mappings.lower_bound(address);
    require(mapped == state.mappings.end() || mapped->first >= address + size);
    munmap(reinterpret_cast<void*>(address), size);
    state.reservations.erase(found);
  });
}

GPUPOOL_CUDA CUresult cuMemCreate(CUmemGenericAllocationHandle* out, size_t size,
                                  const CUmemAllocationProp* properties, unsigned long long flags) {
  return call([&] {
    require(out != nullptr && properties != nullptr && flags == 0);
    require(size != 0 && size % kGranularity == 0);
    require(properties->type == CU_MEM_ALLOCATION_TYPE_PINNED);
    constexpr u32 kFile = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    require((static_cast<u32>(properties->requestedHandleTypes) & ~kFile) == 0, CUDA_ERROR_NOT_SUPPORTED);
    Device& device = device_at(properties->location);
    auto physical = make_physical(
        device, size, properties->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    physical->properties = *properties;
    *out = physicals().add(std::move(physical));
  });
}

GPUPOOL_CUDA CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  return call([&] {
    Vmm& state = vmm();
    const auto physical = physicals().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(state.mutex);
    if (--physical->references == 0) physicals().take(handle);  // what is mapped stays until it is unmapped
  });
}

GPUPOOL_CUDA CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset,
                               CUmemGenericAllocationHandle handle, unsigned long long flags) {
  return call([&] {
    require_range(address, size);
    const auto physical = physicals().get(handle, CUDA_ERROR_INVALID_VALUE);
    require(flags == 0 && offset % kGranularity == 0 && offset <= physical->size &&
            size <= physical->size - offset);
    Vmm& state = vmm();
    const std::lock_guard lock(state.mutex);
    require(inside_reservation(state, address, size));
    Allocation allocation;
    allocation.base = address;
    allocation.size = allocation.reserved = size;
    allocation.kind = MemoryKind::mapped;
    allocation.device = physical->device->ordinal;
    allocation.accessible = false;
    allocation.mapping_handle = handle;
    require(memory_table().insert(allocation));  // overlaps with what is mapped already
    if (!physical->map(address, offset, size)) {
      memory_table().take(address);
      clear_mapping(address, size);
      fail(CUDA_ERROR_OUT_OF_MEMORY);
    }
    state.mappings[address] = Mapping{size, physical, {}};
  });
}

GPUPOOL_CUDA CUresult cuMemUnmap(CUdeviceptr address, size_t size) {
  return call([&] {
    require_range(address, size);
    Vmm& state = vmm();
    synchronize_everything();  // any device may still use it
    const std::lock_guard lock(state.mutex);
    for (const u64 base : mappings_in(state, address, size)) {
      memory_table().take(base);
      clear_mapping(base, state.mappings[base].size);
      state.mappings.erase(base);
    }
  });
}

GPUPOOL_CUDA CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc* access,
                                     size_t count) {
  return call([&] {
    require_range(address, size);
    require(access != nullptr && count != 0);
    Vmm& state = vmm();
    const std::lock_guard lock(state.mutex);
    const std::vector<u64> bases = mappings_in(state, address, size);
    for (size_t i = 0; i < count; ++i) {
      device_at(access[i].location);
      // The engine knows no memory that can only be read.
      require(access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ, CUDA_ERROR_NOT_SUPPORTED);
      require(access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE ||
              access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    }
    for (const u64 base : bases) {
      Mapping& mapping = state.mappings[base];
      for (size_t i = 0; i < count; ++i)
        if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE)
          mapping.devices.erase(access[i].location.id);
        else
          mapping.devices.insert(access[i].location.id);
      // Kernels in flight may use it: what was usable once stays mapped until it is unmapped.
      if (!mapping.devices.empty() &&
          mprotect(reinterpret_cast<void*>(base), mapping.size, PROT_READ | PROT_WRITE) != 0)
        fail(CUDA_ERROR_OUT_OF_MEMORY);
      memory_table().set_accessible(base, !mapping.devices.empty());
    }
  });
}

GPUPOOL_CUDA CUresult cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location,
                                     CUdeviceptr address) {
  return call([&] {
    require(flags != nullptr && location != nullptr);
    const Device& device = device_at(*location);
    Vmm& state = vmm();
    const std::lock_guard lock(state.mutex);
    auto next = state.mappings.upper_bound(address);
    require(next != state.mappings.begin());
    const auto& [base, mapping] = *std::prev(next);
    require(address - base < mapping.size);
    *flags = mapping.devices.contains(device.ordinal) ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                                                      : CU_MEM_ACCESS_FLAGS_PROT_NONE;
  });
}

GPUPOOL_CUDA CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* out,
                                                             CUmemGenericAllocationHandle handle) {
  return call([&] {
    require(out != nullptr);
    *out = physicals().get(handle, CUDA_ERROR_INVALID_VALUE)->properties;
  });
}

GPUPOOL_CUDA CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* out, void* address) {
  return call([&] {
    require(out != nullptr);
    Vmm& state = vmm();
    const std::lock_guard lock(state.mutex);
    auto next = state.mappings.upper_bound(reinterpret_cast<u64>(address));
    require(next != state.mappings.begin());
    const auto& [base, mapping] = *std::prev(next);
    require(reinterpret_cast<u64>(address) - base < mapping.size);
    if (mapping.memory->references++ == 0) physicals().add(mapping.memory);  // released, but still mapped
    *out = mapping.memory->handle;
  });
}

GPUPOOL_CUDA CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle,
                                                   CUmemAllocationHandleType type, unsigned long long flags) {
  return call([&] {
    require(out != nullptr && flags == 0);
    require(type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_NOT_SUPPORTED);
    const auto physical = physicals().get(handle, CUDA_ERROR_INVALID_VALUE);
    require(physical->own_file);  // it was not made to be exported
    const int file = fcntl(physical->file, F_DUPFD_CLOEXEC, 0);
    require(file >= 0, CUDA_ERROR_OPERATING_SYSTEM);
    *static_cast<int*>(out) = file;
  });
}

GPUPOOL_CUDA CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* out, void* handle,
                                                     CUmemAllocationHandleType type) {
  return call([&] {
    require(out != nullptr && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    auto physical = import_physical(static_cast<int>(reinterpret_cast<i64>(handle)));
    physical->properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    physical->properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    physical->properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, physical->device->ordinal};
    *out = physicals().add(std::move(physical));
  });
}

}  // namespace gpupool::softgpu
