// Managed memory. On one host it is window memory that the GPU reads and writes across PCIe: program and
// kernels always see each other's stores, and nothing migrates. So advice, prefetching and attaching have
// nothing to do; they are checked and remembered. Without shared memory there is none of it.
#include <cstring>
#include <mutex>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/advice.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/memory.hpp"
#include "guest/runtime/session.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

struct Remembered {
  std::mutex mutex;
  AdviceMap advice;

  // Never destroyed: programs free memory in their exit handlers.
  static Remembered& instance() {
    static auto* remembered = new Remembered();
    return *remembered;
  }
};

// Whether [address, +count) is managed memory; the last page of an allocation counts as a whole.
bool is_managed(u64 address, u64 count) {
  constexpr u64 kPage = 4096;
  const std::optional<Allocation> found = address_space().find(address);
  if (!found || found->kind != MemoryKind::managed || count == 0) return false;
  const u64 left = (found->end() + kPage - 1) / kPage * kPage - address;
  return count <= left;
}

CUresult check_location(const CUmemLocation& location) {
  switch (location.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
      return device_info(location.id) == nullptr ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
      return CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
      return location.id < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

// What a CUdevice means in the first forms of these calls: an ordinal, or CU_DEVICE_CPU.
CUmemLocation location_of(CUdevice device) {
  CUmemLocation location{};
  location.type = device == CU_DEVICE_CPU ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE;
  location.id = device == CU_DEVICE_CPU ? 0 : device;
  return location;
}
CUdevice device_of(const CUmemLocation& location) {
  switch (location.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
      return location.id;
    case CU_MEM_LOCATION_TYPE_INVALID:
      return CU_DEVICE_INVALID;
    default:
      return CU_DEVICE_CPU;
  }
}

CUresult advise(u64 address, u64 count, CUmem_advise advice, const CUmemLocation& location) {
  const bool names_place = advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION ||
                           advice == CU_MEM_ADVISE_SET_ACCESSED_BY ||
                           advice == CU_MEM_ADVISE_UNSET_ACCESSED_BY;
  if (advice < CU_MEM_ADVISE_SET_READ_MOSTLY || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY)
    return CUDA_ERROR_INVALID_VALUE;
  if (!is_managed(address, count)) return CUDA_ERROR_INVALID_VALUE;
  if (names_place)
    if (const CUresult result = check_location(location); result != CUDA_SUCCESS) return result;
  const bool numa = location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA ||
                    location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
  if (names_place && numa && advice != CU_MEM_ADVISE_SET_PREFERRED_LOCATION) return CUDA_ERROR_INVALID_VALUE;
  const u64 accessor =
      location.type == CU_MEM_LOCATION_TYPE_DEVICE ? u64{1} << (location.id & 63) : Advice::kHostBit;
  Remembered& remembered = Remembered::instance();
  const std::lock_guard lock(remembered.mutex);
  remembered.advice.change(address, address + count, [&](Advice& page) {
    switch (advice) {
      case CU_MEM_ADVISE_SET_READ_MOSTLY:
      case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
        page.read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
        return;
      case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
        page.preferred = location;
        return;
      case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
        page.preferred = Advice{}.preferred;
        return;
      case CU_MEM_ADVISE_SET_ACCESSED_BY:
        page.accessed_by |= accessor;
        return;
      case CU_MEM_ADVISE_UNSET_ACCESSED_BY:
        page.accessed_by &= ~accessor;
        return;
    }
  });
  return CUDA_SUCCESS;
}

// The stream of a call that would put work on it, were there any to do.
CUresult check_stream(CUstream handle) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (error = check_legacy(*stream); error != CUDA_SUCCESS) return error;
  if (error = refuse_capturing(*stream); error != CUDA_SUCCESS) return error;
  return Session::current()->take_async_error();
}

void remember_prefetch(u64 address, u64 count, const CUmemLocation& location) {
  Remembered& remembered = Remembered::instance();
  const std::lock_guard lock(remembered.mutex);
  remembered.advice.change(address, address + count, [&](Advice& page) { page.prefetched = location; });
}

CUresult prefetch(u64 address, u64 count, const CUmemLocation& location, unsigned flags, CUstream stream) {
  if (flags != 0 || !is_managed(address, count)) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_location(location); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_stream(stream); result != CUDA_SUCCESS) return result;
  remember_prefetch(address, count, location);
  return CUDA_SUCCESS;
}

struct Batch {
  const CUdeviceptr* addresses = nullptr;
  const size_t* sizes = nullptr;
  size_t count = 0;
  const CUmemLocation* locations = nullptr;
  const size_t* location_from = nullptr;  // location i holds from operation location_from[i] on
  size_t location_count = 0;
  unsigned long long flags = 0;
};

CUresult check_batch(const Batch& batch, bool with_locations) {
  if (batch.addresses == nullptr || batch.sizes == nullptr || batch.count == 0 || batch.flags != 0)
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < batch.count; ++i)
    if (!is_managed(batch.addresses[i], batch.sizes[i])) return CUDA_ERROR_INVALID_VALUE;
  if (!with_locations) return CUDA_SUCCESS;
  if (batch.locations == nullptr || batch.location_from == nullptr || batch.location_count == 0 ||
      batch.location_count > batch.count || batch.location_from[0] != 0)
    return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < batch.location_count; ++i) {
    if (batch.location_from[i] >= batch.count) return CUDA_ERROR_INVALID_VALUE;
    if (i > 0 && batch.location_from[i] <= batch.location_from[i - 1]) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_location(batch.locations[i]); result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

// cuda.h: batches must not go to the legacy stream.
CUresult run_batch(const Batch& batch, bool with_locations, CUstream handle) {
  if (const CUresult result = check_batch(batch, with_locations); result != CUDA_SUCCESS) return result;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (stream->context->legacy == stream) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_stream(handle); result != CUDA_SUCCESS) return result;
  if (!with_locations) return CUDA_SUCCESS;  // what is discarded may as well stay as it is
  size_t place = 0;
  for (size_t i = 0; i < batch.count; ++i) {
    if (place + 1 < batch.location_count && batch.location_from[place + 1] == i) ++place;
    remember_prefetch(batch.addresses[i], batch.sizes[i], batch.locations[place]);
  }
  return CUDA_SUCCESS;
}

// What all pages of a range agree on.
struct Common {
  bool first = true;
  bool read_mostly = true;
  u64 accessed_by = ~u64{0};
  CUmemLocation preferred{};
  CUmemLocation prefetched{};
};

void agree(CUmemLocation& common, const CUmemLocation& page, bool first) {
  if (first)
    common = page;
  else if (common.type != page.type || common.id != page.id)
    common = CUmemLocation{CU_MEM_LOCATION_TYPE_INVALID, 0};
}

Common common_advice(u64 address, u64 count) {
  Common common;
  Remembered& remembered = Remembered::instance();
  const std::lock_guard lock(remembered.mutex);
  remembered.advice.each(address, address + count, [&](const Advice& page) {
    common.read_mostly = common.read_mostly && page.read_mostly;
    common.accessed_by &= page.accessed_by;
    agree(common.preferred, page.preferred, common.first);
    agree(common.prefetched, page.prefetched, common.first);
    common.first = false;
  });
  return common;
}

void write_accessors(void* data, size_t bytes, u64 accessed_by) {
  std::vector<CUdevice> devices;
  for (u32 device = 0; device < wire::kMaxDevices; ++device)
    if ((accessed_by >> device & 1) != 0) devices.push_back(static_cast<CUdevice>(device));
  if ((accessed_by & Advice::kHostBit) != 0) devices.push_back(CU_DEVICE_CPU);  // last, as driver 580 answers
  devices.resize(bytes / sizeof(CUdevice), CU_DEVICE_INVALID);
  std::memcpy(data, devices.data(), bytes);
}

CUresult write_attribute(void* data, size_t bytes, CUmem_range_attribute attribute, const Common& common) {
  if (data == nullptr || bytes == 0 || bytes % sizeof(i32) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY) {
    write_accessors(data, bytes, common.accessed_by);
    return CUDA_SUCCESS;
  }
  i32 value = 0;
  if (bytes != sizeof value) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
      value = common.read_mostly ? 1 : 0;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
      value = device_of(common.preferred);
      break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
      value = device_of(common.prefetched);
      break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:
      value = common.preferred.type;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:
      value = common.preferred.id;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE:
      value = common.prefetched.type;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:
      value = common.prefetched.id;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

}  // namespace

void forget_advice(const Allocation& allocation) {
  Remembered& remembered = Remembered::instance();
  const std::lock_guard lock(remembered.mutex);
  remembered.advice.forget(allocation.address, allocation.end());
}

namespace api {

CUresult cuMemAllocManaged(CUdeviceptr* address, size_t bytes, unsigned int flags) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (address == nullptr || bytes == 0 || (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST))
    return CUDA_ERROR_INVALID_VALUE;
  if (!Session::current()->shared_memory()) {
    log_unsupported("cuMemAllocManaged over a connection without shared memory");
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  Allocation allocation;
  allocation.kind = MemoryKind::managed;
  allocation.flags = flags;
  if (const CUresult result = allocate_from_window(allocation, *context, bytes); result != CUDA_SUCCESS)
    return result;
  // The driver's pages are clear when they are first touched; these may have served this program before.
  std::memset(reinterpret_cast<void*>(allocation.address), 0, bytes);
  *address = allocation.address;
  return CUDA_SUCCESS;
}

CUresult cuMemAdvise(CUdeviceptr address, size_t count, CUmem_advise advice, CUdevice device) {
  return advise(address, count, advice, location_of(device));
}

CUresult cuMemAdvise_v2(CUdeviceptr address, size_t count, CUmem_advise advice, CUmemLocation location) {
  return advise(address, count, advice, location);
}

CUresult cuMemPrefetchAsync(CUdeviceptr address, size_t count, CUdevice device, CUstream stream) {
  return prefetch(address, count, location_of(device), 0, stream);
}

CUresult cuMemPrefetchAsync_v2(CUdeviceptr address, size_t count, CUmemLocation location, unsigned int flags,
                               CUstream stream) {
  return prefetch(address, count, location, flags, stream);
}

CUresult cuMemPrefetchBatchAsync(CUdeviceptr* addresses, size_t* sizes, size_t count,
                                 CUmemLocation* locations, size_t* from, size_t location_count,
                                 unsigned long long flags, CUstream stream) {
  return run_batch({addresses, sizes, count, locations, from, location_count, flags}, true, stream);
}

CUresult cuMemDiscardBatchAsync(CUdeviceptr* addresses, size_t* sizes, size_t count, unsigned long long flags,
                                CUstream stream) {
  return run_batch({addresses, sizes, count, nullptr, nullptr, 0, flags}, false, stream);
}

CUresult cuMemDiscardAndPrefetchBatchAsync(CUdeviceptr* addresses, size_t* sizes, size_t count,
                                           CUmemLocation* locations, size_t* from, size_t location_count,
                                           unsigned long long flags, CUstream stream) {
  return run_batch({addresses, sizes, count, locations, from, location_count, flags}, true, stream);
}

CUresult cuMemRangeGetAttribute(void* data, size_t bytes, CUmem_range_attribute attribute,
                                CUdeviceptr address, size_t count) {
  if (!is_managed(address, count)) return CUDA_ERROR_INVALID_VALUE;
  return write_attribute(data, bytes, attribute, common_advice(address, count));
}

CUresult cuMemRangeGetAttributes(void** data, size_t* sizes, CUmem_range_attribute* attributes,
                                 size_t attribute_count, CUdeviceptr address, size_t count) {
  if (data == nullptr || sizes == nullptr || attributes == nullptr || attribute_count == 0 ||
      !is_managed(address, count))
    return CUDA_ERROR_INVALID_VALUE;
  const Common common = common_advice(address, count);
  for (size_t i = 0; i < attribute_count; ++i)
    if (const CUresult result = write_attribute(data[i], sizes[i], attributes[i], common);
        result != CUDA_SUCCESS)
      return result;
  return CUDA_SUCCESS;
}

CUresult cuStreamAttachMemAsync(CUstream stream, CUdeviceptr address, size_t length, unsigned int flags) {
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST && flags != CU_MEM_ATTACH_SINGLE)
    return CUDA_ERROR_INVALID_VALUE;
  const std::optional<Allocation> found = address_space().find(address);
  // cuda.h: the length is the allocation's or 0, and only whole allocations can be attached.
  if (!found || found->kind != MemoryKind::managed || found->address != address ||
      (length != 0 && length != found->size))
    return CUDA_ERROR_INVALID_VALUE;
  // A single stream to attach to cannot be the one that stands for all of them.
  if (flags == CU_MEM_ATTACH_SINGLE && (stream == nullptr || stream == CU_STREAM_LEGACY))
    return CUDA_ERROR_INVALID_VALUE;
  return check_stream(stream);
}

}  // namespace api
}  // namespace gpupool::guest
