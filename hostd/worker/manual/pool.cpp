// Stream-ordered memory. The driver gives the address at once; the zeroes are written in the stream's order,
// which is when the client may first use the memory.
#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/manual/share.hpp"
#include "wire/cpp/device_info.hpp"
#include "wire/cpp/futex.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// Inside a capture nothing of ours is issued: what a graph allocates comes from this session's own graph
// memory.
CUresult clear_in_order(Worker& worker, const Request& request, CUdeviceptr address, u64 bytes) {
  if (!worker.caps.scrub) return CUDA_SUCCESS;
  const StreamEntry* stream = worker.streams.find(request.stream_handle);
  if (stream != nullptr && stream->capturing) return CUDA_SUCCESS;
  // Programs use such memory on other streams, too, without waiting for this one: on a bare card that works
  // when the stream has nothing to do, for there is no clearing to overtake.
  const bool idle = !any_capturing(worker) && worker.driver.cuStreamQuery(request.stream) == CUDA_SUCCESS;
  const CUresult result = worker.driver.cuMemsetD8Async(address, 0, bytes, request.stream);
  return result == CUDA_SUCCESS && idle ? worker.driver.cuStreamSynchronize(request.stream) : result;
}

CUresult finish_allocation(Worker& worker, Request& request, CUdeviceptr address, u64 bytes) {
  if (const CUresult result = clear_in_order(worker, request, address, bytes); result != CUDA_SUCCESS) {
    worker.driver.cuMemFreeAsync(address, request.stream);
    return result;
  }
  request.out->put<u64>(address);
  return CUDA_SUCCESS;
}

void need_stream(const Request& request) {
  if (!request.stream_handle) throw wire::ProtocolError("a stream-ordered allocation without a stream");
}

CUmemoryPool find_pool(Worker& worker, wire::Handle handle) {
  const CUmemoryPool* pool = worker.mem_pools.find(handle);
  return pool == nullptr ? nullptr : *pool;
}

// Attributes up to here are ints, those above 64-bit (their descriptions in cuda.h).
constexpr i32 kLastIntAttribute = CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
constexpr i32 kLastAttribute = CU_MEMPOOL_ATTR_USED_MEM_HIGH;

CUmemPool_attribute read_attribute(Request& request) {
  const auto attribute = request.in.get<i32>();
  if (attribute < CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES || attribute > kLastAttribute)
    throw wire::ProtocolError("no such pool attribute");
  return static_cast<CUmemPool_attribute>(attribute);
}

}  // namespace

bool notice_frees(Worker& worker, u64 patience_ns) {
  if (any_capturing(worker)) return false;
  const DriverApi& driver = worker.driver;
  wire::Backoff waited(50, 100);
  std::vector<CUstream> done;
  bool all = true;
  worker.streams.each([&](wire::Handle, const StreamEntry& entry) {
    // A fault is told by what follows.
    CUresult result = driver.cuStreamQuery(entry.stream);
    while (result == CUDA_ERROR_NOT_READY && waited.elapsed_ns() < patience_ns) {
      waited.step();
      result = driver.cuStreamQuery(entry.stream);
    }
    if (result == CUDA_SUCCESS)
      done.push_back(entry.stream);
    else
      all = false;
  });
  // Waiting for the legacy stream may be waiting for the others.
  for (const CUstream stream : done)
    if (all || stream != CU_STREAM_LEGACY) static_cast<void>(driver.cuStreamSynchronize(stream));
  return all;
}

CUresult handle_cuMemAllocAsync(Worker& worker, Request& request) {
  if (worker.driver.cuMemAllocAsync == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  need_stream(request);
  const auto bytes = request.in.get<u64>();
  request.in.finish();
  CUdeviceptr address = 0;
  const CUresult result = worker.driver.cuMemAllocAsync(&address, bytes, request.stream);
  return result != CUDA_SUCCESS ? result : finish_allocation(worker, request, address, bytes);
}

CUresult handle_cuMemAllocFromPoolAsync(Worker& worker, Request& request) {
  if (worker.driver.cuMemAllocFromPoolAsync == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  need_stream(request);
  const auto bytes = request.in.get<u64>();
  CUmemoryPool pool = find_pool(worker, request.in.get<wire::Handle>());
  request.in.finish();
  if (pool == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUdeviceptr address = 0;
  const CUresult result = worker.driver.cuMemAllocFromPoolAsync(&address, bytes, pool, request.stream);
  return result != CUDA_SUCCESS ? result : finish_allocation(worker, request, address, bytes);
}

CUresult handle_cuMemFreeAsync(Worker& worker, Request& request) {
  if (worker.driver.cuMemFreeAsync == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  need_stream(request);
  const auto address = request.in.get<u64>();
  request.in.finish();
  forget_shared_memory(worker, address);
  return worker.driver.cuMemFreeAsync(address, request.stream);
}

CUresult handle_cuMemPoolCreate(Worker& worker, Request& request) {
  if (worker.driver.cuMemPoolCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  auto properties = request.in.get<CUmemPoolProps>();
  request.in.finish();
  if (const CUresult result = localize(worker, properties); result != CUDA_SUCCESS) return result;
  CUmemoryPool pool = nullptr;
  if (const CUresult result = worker.driver.cuMemPoolCreate(&pool, &properties); result != CUDA_SUCCESS)
    return result;
  const wire::Handle handle = worker.mem_pools.add(pool);
  if (!handle) {
    worker.driver.cuMemPoolDestroy(pool);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  request.out->put(handle);
  return CUDA_SUCCESS;
}

CUresult handle_cuMemPoolTrimTo(Worker& worker, Request& request) {
  if (worker.driver.cuMemPoolTrimTo == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmemoryPool pool = find_pool(worker, request.in.get<wire::Handle>());
  const u64 keep = request.in.get<u64>();
  request.in.finish();
  if (pool == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  notice_frees(worker, kFreePatienceNs);
  return worker.driver.cuMemPoolTrimTo(pool, keep);
}

CUresult handle_cuMemPoolGetAttribute(Worker& worker, Request& request) {
  if (worker.driver.cuMemPoolGetAttribute == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmemoryPool pool = find_pool(worker, request.in.get<wire::Handle>());
  const CUmemPool_attribute attribute = read_attribute(request);
  request.in.finish();
  if (pool == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute > kLastIntAttribute) notice_frees(worker, kFreePatienceNs);
  u64 value = 0;
  const CUresult result = worker.driver.cuMemPoolGetAttribute(pool, attribute, &value);
  if (result == CUDA_SUCCESS) request.out->put(value);
  return result;
}

CUresult handle_cuMemPoolSetAttribute(Worker& worker, Request& request) {
  if (worker.driver.cuMemPoolSetAttribute == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmemoryPool pool = find_pool(worker, request.in.get<wire::Handle>());
  const CUmemPool_attribute attribute = read_attribute(request);
  auto value = request.in.get<u64>();
  request.in.finish();
  if (attribute <= kLastIntAttribute && value > 0xffff'ffffu)
    throw wire::ProtocolError("pool attribute out of range");
  if (pool == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return worker.driver.cuMemPoolSetAttribute(pool, attribute, &value);
}

CUresult handle_cuMemPoolSetAccess(Worker& worker, Request& request) {
  if (worker.driver.cuMemPoolSetAccess == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmemoryPool pool = find_pool(worker, request.in.get<wire::Handle>());
  std::vector<CUmemAccessDesc> access = request.in.get_array<CUmemAccessDesc>(wire::kMaxDevices);
  request.in.finish();
  if (pool == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (CUmemAccessDesc& each : access)
    if (const CUresult result = localize(worker, each); result != CUDA_SUCCESS) return result;
  return worker.driver.cuMemPoolSetAccess(pool, access.data(), access.size());
}

CUresult handle_cuMemPoolGetAccess(Worker& worker, Request& request) {
  if (worker.driver.cuMemPoolGetAccess == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmemoryPool pool = find_pool(worker, request.in.get<wire::Handle>());
  auto location = request.in.get<CUmemLocation>();
  request.in.finish();
  if (pool == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = localize(worker, location); result != CUDA_SUCCESS) return result;
  CUmemAccess_flags flags{};
  const CUresult result = worker.driver.cuMemPoolGetAccess(&flags, pool, &location);
  if (result == CUDA_SUCCESS) request.out->put(static_cast<u32>(flags));
  return result;
}

}  // namespace gpupool::worker
