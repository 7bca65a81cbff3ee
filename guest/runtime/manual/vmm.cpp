// Virtual memory management: ranges, physical blocks, mappings. The worker's driver does the work; the table
// here knows every range and mapping, so that a bad address is refused at once and pointer queries stay
// local.
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/share.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

constexpr int kTries = 16;

CUresult to_session(CUmemLocation& location) {
  if (location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  location.id = session_device(location.id);
  return location.id < 0 ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

// The program's number of a device that the session counts as `index`.
int to_program(int index) {
  for (u32 device = 0; device < device_count(); ++device)
    if (session_device(static_cast<CUdevice>(device)) == index) return static_cast<int>(device);
  return CU_DEVICE_INVALID;
}

CUresult reserve_in_worker(Reservation& range, u64 alignment, u64 wanted, u64 flags) {
  Call call(wire::Function::cuMemAddressReserve);
  call.put<u64>(range.size);
  call.put<u64>(alignment);
  call.put<u64>(wanted);
  call.put<u64>(flags);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  range.address = call.get<u64>();
  return CUDA_SUCCESS;
}

CUresult free_in_worker(const Reservation& range) {
  Call call(wire::Function::cuMemAddressFree);
  call.put<u64>(range.address);
  call.put<u64>(range.size);
  return call.send();
}

// Properties as the session counts devices.
CUresult sent_properties(const CUmemAllocationProp* properties, CUmemAllocationProp& sent) {
  if (properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
  sent = *properties;
  sent.win32HandleMetaData = nullptr;
  return to_session(sent.location);
}

}  // namespace

namespace api {

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t size, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags) {
  if (address == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
  std::vector<Reservation> in_the_way;
  Reservation range{0, size};
  CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
  bool found = false;
  for (int tried = 0; tried < kTries && !found; ++tried) {
    result = reserve_in_worker(range, alignment, tried == 0 ? wanted : 0, flags);
    if (result != CUDA_SUCCESS) break;
    found = address_space().keep_free(range.address, range.size);
    if (!found) in_the_way.push_back(range);
  }
  for (const Reservation& held : in_the_way) free_in_worker(held);
  if (!found) {
    if (!in_the_way.empty()) {
      log_line("an address range of %zu bytes fell %zu times on addresses that this program uses; giving up",
               size, in_the_way.size());
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
  }
  address_space().add_reservation(range);
  *address = range.address;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t size) {
  if (!address_space().take_reservation(address, size)) return CUDA_ERROR_INVALID_VALUE;
  address_space().forget(address, size);
  return free_in_worker(Reservation{address, size});
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp* properties,
                     unsigned long long flags) {
  if (handle == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
  CUmemAllocationProp sent{};
  if (const CUresult result = sent_properties(properties, sent); result != CUDA_SUCCESS) return result;
  const auto create = [&] {
    Call call(wire::Function::cuMemCreate);
    call.put<u64>(size);
    call.put<u64>(flags);
    call.put(sent);
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    *handle = call.get<wire::Handle>().bits;
    return CUDA_SUCCESS;
  };
  const CUresult result = create();
  return result == CUDA_ERROR_OUT_OF_MEMORY && collect_token_files(true) ? create() : result;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  const wire::Handle block{handle};
  if (block.kind() != wire::HandleKind::mem_allocation) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemRelease);
  call.put(block);
  const CUresult result = call.send();
  collect_token_files(false);
  return result;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* address) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::optional<Allocation> mapping = address_space().find(reinterpret_cast<u64>(address));
  if (!mapping || mapping->kind != MemoryKind::mapped) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemRetainAllocationHandle);
  call.put<u64>(reinterpret_cast<u64>(address));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *handle = call.get<wire::Handle>().bits;
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
  const std::optional<Reservation> range = address_space().find_reservation(address);
  if (!range || size == 0 || size > range->size - (address - range->address)) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemMap);
  call.put<u64>(address);
  call.put<u64>(size);
  call.put<u64>(offset);
  call.put(wire::Handle{handle});
  call.put<u64>(flags);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  Allocation mapping;
  mapping.kind = MemoryKind::mapped;
  mapping.address = address;
  mapping.size = size;
  mapping.block = handle;
  mapping.access = CU_POINTER_ATTRIBUTE_ACCESS_FLAG_NONE;
  // Physical memory belongs to a device and to no context; the device is the one it was created for, which
  // programs that map memory on one device only cannot tell from the current one.
  const Context* context = current_context();
  mapping.device = context == nullptr ? 0 : context->device;
  return address_space().insert(mapping) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t size) {
  if (!address_space().take_mapped(address, size)) {
    // Driver 580 takes it for done where a reserved range has nothing mapped.
    const std::optional<Reservation> range = address_space().find_reservation(address);
    const bool inside = range && size != 0 && size <= range->size - (address - range->address);
    return inside && address_space().empty(address, size) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  }
  Call call(wire::Function::cuMemUnmap);
  call.put<u64>(address);
  call.put<u64>(size);
  return call.send();
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc* access, size_t count) {
  if (access == nullptr || count == 0 || count > wire::kMaxDevices) return CUDA_ERROR_INVALID_VALUE;
  std::vector<CUmemAccessDesc> sent(access, access + count);
  for (CUmemAccessDesc& each : sent)
    if (const CUresult result = to_session(each.location); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemSetAccess);
  call.put<u64>(address);
  call.put<u64>(size);
  call.put_array(sent.data(), sent.size());
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  for (size_t i = 0; i < count; ++i)  // CUmemAccess_flags and the flags of the attribute have the same values
    address_space().set_access(address, size, access[i].location.id, static_cast<u32>(access[i].flags));
  return CUDA_SUCCESS;
}

CUresult cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr address) {
  if (flags == nullptr || location == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUmemLocation sent = *location;
  if (const CUresult result = to_session(sent); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemGetAccess);
  call.put<u64>(address);
  call.put(sent);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *flags = call.get<u64>();
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp* properties,
                                       CUmemAllocationGranularity_flags option) {
  if (granularity == nullptr || static_cast<u32>(option) > CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)
    return CUDA_ERROR_INVALID_VALUE;
  CUmemAllocationProp sent{};
  if (const CUresult result = sent_properties(properties, sent); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemGetAllocationGranularity);
  call.put(static_cast<u32>(option));
  call.put(sent);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *granularity = call.get<u64>();
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* properties,
                                                CUmemGenericAllocationHandle handle) {
  if (properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemGetAllocationPropertiesFromHandle);
  call.put(wire::Handle{handle});
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *properties = call.get<CUmemAllocationProp>();
  properties->location.id = to_program(properties->location.id);
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
