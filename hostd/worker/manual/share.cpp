// Memory and events shared between sessions of one tenant. The driver's own interprocess calls do the work,
// from worker to worker; the client sees tokens of hostd's exchange only, never a handle or a descriptor of
// the driver.
#include "hostd/worker/manual/share.hpp"

#include <unistd.h>

#include <cstring>
#include <map>

#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/memory_account.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

using wire::ShareKind;
using wire::ShareToken;

// What this session has given out, so that asking twice makes one token. Only the dispatcher's thread comes
// here.
struct Given {
  std::map<u64, ShareToken> memory;    // by base address
  std::map<u64, ShareToken> pointers;  // memory of pools, by address
  std::map<CUevent, ShareToken> events;
};

Given& given() {
  static thread_local Given tokens;
  return tokens;
}

template <typename T>
std::span<const u8> bytes_of(const T& value) {
  return {reinterpret_cast<const u8*>(&value), sizeof value};
}

// The token of `key`, made from what `make` asks the driver for.
template <typename Key, typename Handle, typename Make>
CUresult give(Worker& worker, std::map<Key, ShareToken>& known, Key key, ShareKind kind, Request& request,
              Make make) {
  auto found = known.find(key);
  if (found == known.end()) {
    Handle handle{};
    if (const CUresult result = make(handle); result != CUDA_SUCCESS) return result;
    ShareToken token;
    const CUresult result = worker.exchange.put(kind, bytes_of(handle), -1, token);
    if (result != CUDA_SUCCESS) return result;
    found = known.emplace(key, token).first;
  }
  request.out->put(found->second);
  return CUDA_SUCCESS;
}

// The driver's handle behind a token.
template <typename Handle>
CUresult look_up(Worker& worker, ShareKind kind, const ShareToken& token, Handle& handle) {
  std::vector<u8> payload;
  Descriptor fd;
  const CUresult result = worker.exchange.get(kind, token, payload, fd);
  if (result != CUDA_SUCCESS) return result;
  if (payload.size() != sizeof handle) return CUDA_ERROR_INVALID_HANDLE;
  std::memcpy(&handle, payload.data(), sizeof handle);
  return CUDA_SUCCESS;
}

// A handle of memory, with its size as the exporting program knows it: the driver counts in larger units.
template <typename Handle>
struct Sized {
  Handle handle;
  u64 size;
};

// The driver's allocation around an address.
CUresult range_of(Worker& worker, CUdeviceptr address, CUdeviceptr& base, u64& size) {
  size_t bytes = 0;
  const CUresult result = worker.driver.cuMemGetAddressRange_v2(&base, &bytes, address);
  size = bytes;
  return result;
}

void forget(Worker& worker, std::map<u64, ShareToken>& known, u64 address) {
  const auto found = known.find(address);
  if (found == known.end()) return;
  worker.exchange.drop(found->second);
  known.erase(found);
}

}  // namespace

void forget_shared_memory(Worker& worker, CUdeviceptr address) {
  forget(worker, given().memory, address);
  forget(worker, given().pointers, address);
}

void forget_shared_event(Worker& worker, CUevent event) {
  const auto found = given().events.find(event);
  if (found == given().events.end()) return;
  worker.exchange.drop(found->second);
  given().events.erase(found);
}

// u64 address -> ShareToken, u64 base. The driver's handle is that of the whole allocation.
CUresult handle_cuIpcGetMemHandle(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  request.in.finish();
  if (worker.driver.cuIpcGetMemHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUdeviceptr base = 0;
  u64 size = 0;
  if (const CUresult found = range_of(worker, address, base, size); found != CUDA_SUCCESS) return found;
  return give<u64, Sized<CUipcMemHandle>>(worker, given().memory, base, ShareKind::memory, request,
                                          [&](Sized<CUipcMemHandle>& memory) {
                                            memory.size = size;
                                            return worker.driver.cuIpcGetMemHandle(&memory.handle, base);
                                          });
}

// ShareToken, u32 flags -> u64 address, u64 size
CUresult handle_cuIpcOpenMemHandle_v2(Worker& worker, Request& request) {
  const auto token = request.in.get<ShareToken>();
  const auto flags = request.in.get<u32>();
  request.in.finish();
  if (worker.driver.cuIpcOpenMemHandle_v2 == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  Sized<CUipcMemHandle> memory{};
  CUresult result = look_up(worker, ShareKind::memory, token, memory);
  if (result != CUDA_SUCCESS) return result;
  CUdeviceptr address = 0;
  result = worker.driver.cuIpcOpenMemHandle_v2(&address, memory.handle, flags);
  if (result != CUDA_SUCCESS) return result;
  request.out->put<u64>(address);
  request.out->put<u64>(memory.size);
  return CUDA_SUCCESS;
}

// u64 address
CUresult handle_cuIpcCloseMemHandle(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  request.in.finish();
  if (worker.driver.cuIpcCloseMemHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  return worker.driver.cuIpcCloseMemHandle(address);
}

// wire::Handle event -> ShareToken
CUresult handle_cuIpcGetEventHandle(Worker& worker, Request& request) {
  const EventEntry* entry = worker.events.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (worker.driver.cuIpcGetEventHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const CUevent event = entry->event;
  return give<CUevent, CUipcEventHandle>(
      worker, given().events, event, ShareKind::event, request,
      [&](CUipcEventHandle& handle) { return worker.driver.cuIpcGetEventHandle(&handle, event); });
}

// wire::Handle for the new event, ShareToken
CUresult handle_cuIpcOpenEventHandle(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto token = request.in.get<ShareToken>();
  request.in.finish();
  if (worker.driver.cuIpcOpenEventHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUipcEventHandle shared{};
  CUresult result = look_up(worker, ShareKind::event, token, shared);
  if (result != CUDA_SUCCESS) return result;
  CUevent event = nullptr;
  result = worker.driver.cuIpcOpenEventHandle(&event, shared);
  if (result == CUDA_SUCCESS) worker.events.put(handle, EventEntry{event});
  return result;
}

// wire::Handle block -> ShareToken. Each export is a token of its own, taken back by share_drop.
CUresult handle_cuMemExportToShareableHandle(Worker& worker, Request& request) {
  const CUmemGenericAllocationHandle* found = worker.mem_allocations.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuMemExportToShareableHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const CUmemGenericAllocationHandle block = *found;
  int fd = -1;
  CUresult result =
      worker.driver.cuMemExportToShareableHandle(&fd, block, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  if (result != CUDA_SUCCESS) return result;
  const Descriptor exported(fd);
  result = clear_block(worker, block);
  ShareToken token;
  if (result == CUDA_SUCCESS) result = worker.exchange.put(ShareKind::allocation, {}, exported.get(), token);
  if (result != CUDA_SUCCESS) return result;
  block_exported(block, token);
  request.out->put(token);
  return result;
}

// ShareToken -> wire::Handle
CUresult handle_cuMemImportFromShareableHandle(Worker& worker, Request& request) {
  const auto token = request.in.get<ShareToken>();
  request.in.finish();
  if (worker.driver.cuMemImportFromShareableHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  std::vector<u8> payload;
  Descriptor fd;
  CUresult result = worker.exchange.get(ShareKind::allocation, token, payload, fd);
  if (result != CUDA_SUCCESS) return result;
  CUmemGenericAllocationHandle block = 0;
  result = worker.driver.cuMemImportFromShareableHandle(
      &block, reinterpret_cast<void*>(static_cast<i64>(fd.get())), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (result != CUDA_SUCCESS) return result;
  const wire::Handle handle = worker.mem_allocations.add(block);
  if (!handle) {
    worker.driver.cuMemRelease(block);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  request.out->put(handle);
  return CUDA_SUCCESS;
}

// wire::Handle pool -> ShareToken
CUresult handle_cuMemPoolExportToShareableHandle(Worker& worker, Request& request) {
  const CUmemoryPool* found = worker.mem_pools.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuMemPoolExportToShareableHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  int fd = -1;
  CUresult result = worker.driver.cuMemPoolExportToShareableHandle(
      &fd, *found, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  if (result != CUDA_SUCCESS) return result;
  const Descriptor exported(fd);
  ShareToken token;
  result = worker.exchange.put(ShareKind::pool, {}, exported.get(), token);
  if (result == CUDA_SUCCESS) request.out->put(token);
  return result;
}

// ShareToken -> wire::Handle
CUresult handle_cuMemPoolImportFromShareableHandle(Worker& worker, Request& request) {
  const auto token = request.in.get<ShareToken>();
  request.in.finish();
  if (worker.driver.cuMemPoolImportFromShareableHandle == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  std::vector<u8> payload;
  Descriptor fd;
  CUresult result = worker.exchange.get(ShareKind::pool, token, payload, fd);
  if (result != CUDA_SUCCESS) return result;
  CUmemoryPool pool = nullptr;
  result = worker.driver.cuMemPoolImportFromShareableHandle(
      &pool, reinterpret_cast<void*>(static_cast<i64>(fd.get())), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
      0);
  if (result != CUDA_SUCCESS) return result;
  const wire::Handle handle = worker.mem_pools.add(pool);
  if (!handle) {
    worker.driver.cuMemPoolDestroy(pool);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  request.out->put(handle);
  return CUDA_SUCCESS;
}

// u64 address -> ShareToken
CUresult handle_cuMemPoolExportPointer(Worker& worker, Request& request) {
  const auto address = request.in.get<u64>();
  request.in.finish();
  if (worker.driver.cuMemPoolExportPointer == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUdeviceptr base = 0;
  u64 size = 0;
  if (const CUresult found = range_of(worker, address, base, size); found != CUDA_SUCCESS) return found;
  return give<u64, Sized<CUmemPoolPtrExportData>>(worker, given().pointers, address, ShareKind::pool_pointer,
                                                  request, [&](Sized<CUmemPoolPtrExportData>& memory) {
                                                    memory.size = size - (address - base);
                                                    return worker.driver.cuMemPoolExportPointer(
                                                        &memory.handle, address);
                                                  });
}

// wire::Handle pool, ShareToken -> u64 address, u64 size
CUresult handle_cuMemPoolImportPointer(Worker& worker, Request& request) {
  const CUmemoryPool* pool = worker.mem_pools.find(request.in.get<wire::Handle>());
  const auto token = request.in.get<ShareToken>();
  request.in.finish();
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuMemPoolImportPointer == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  Sized<CUmemPoolPtrExportData> memory{};
  CUresult result = look_up(worker, ShareKind::pool_pointer, token, memory);
  if (result != CUDA_SUCCESS) return result;
  CUdeviceptr address = 0;
  result = worker.driver.cuMemPoolImportPointer(&address, *pool, &memory.handle);
  if (result != CUDA_SUCCESS) return result;
  request.out->put<u64>(address);
  request.out->put<u64>(memory.size);
  return CUDA_SUCCESS;
}

// ShareToken. Only what this session has left itself goes.
CUresult handle_share_drop(Worker& worker, Request& request) {
  const auto token = request.in.get<ShareToken>();
  request.in.finish();
  worker.exchange.drop(token);
  export_dropped(token);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
