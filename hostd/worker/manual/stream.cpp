// Streams on the worker's side: creation under the client's handle, destruction behind a last mark.
#include "hostd/worker/manual/capture.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u32 kLegacy = 1;
constexpr u32 kPerThread = 2;

// Attributes that a stream takes (cuda.h, CUstreamAttrID). Others hold handles, which would reach the driver
// raw.
bool is_stream_attribute(u32 attribute) {
  switch (attribute) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
      return true;
    default:
      return false;
  }
}

void check_stream_index(wire::Handle handle) {
  if (handle.index() >= wire::kWords) throw wire::ProtocolError("a stream without a completion word");
}

}  // namespace

CUresult handle_cuStreamCreateWithPriority(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto flags = request.in.get<u32>();
  const auto priority = request.in.get<i32>();
  check_stream_index(handle);
  CUstream stream = nullptr;
  const CUresult result = worker.driver.cuStreamCreateWithPriority(&stream, flags, priority);
  if (result == CUDA_SUCCESS) worker.streams.put(handle, StreamEntry{stream, request.context_index, false});
  return result;
}

// The implicit streams of a context. The per-thread one is an ordinary blocking stream here: the driver's own
// would be that of the dispatcher's thread, for all client threads.
CUresult handle_stream_adopt(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto kind = request.in.get<u32>();
  check_stream_index(handle);
  if (kind == kLegacy) {
    worker.streams.put(handle, StreamEntry{CU_STREAM_LEGACY, request.context_index, false});
    return CUDA_SUCCESS;
  }
  if (kind != kPerThread) throw wire::ProtocolError("stream_adopt of an unknown kind");
  CUstream stream = nullptr;
  const CUresult result = worker.driver.cuStreamCreate(&stream, CU_STREAM_DEFAULT);
  if (result == CUDA_SUCCESS) worker.streams.put(handle, StreamEntry{stream, request.context_index, false});
  return result;
}

CUresult handle_cuStreamDestroy_v2(Worker& worker, Request& request) {
  const StreamEntry* entry = worker.streams.find(request.stream_handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (entry->stream == CU_STREAM_LEGACY) throw wire::ProtocolError("destruction of the legacy stream");
  abandon_capture(worker, *entry);
  // The client gives the index to another stream once this last word has come.
  request.marked = true;
  const CUresult marked = worker.mark(request.stream_handle, request.ticket);
  const CUstream stream = entry->stream;
  worker.streams.take(request.stream_handle);
  const CUresult result = worker.driver.cuStreamDestroy_v2(stream);
  if (marked != CUDA_SUCCESS)
    worker.window.word(request.stream_handle.index())
        .value.store(request.ticket + 1, std::memory_order_release);
  return result;
}

// The dispatcher marks the slot after this: that is all it is for.
CUresult handle_stream_mark(Worker&, Request&) {
  return CUDA_SUCCESS;
}

CUresult handle_stream_poke(Worker& worker, Request& request) {
  if (request.stream == nullptr) throw wire::ProtocolError("a poke without a stream");
  const StreamEntry* entry = worker.streams.find(request.stream_handle);
  if (entry == nullptr || entry->capturing) return CUDA_SUCCESS;  // a query would end the capture
  const CUresult result = worker.driver.cuStreamQuery(request.stream);
  return result == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : result;
}

CUresult handle_cuStreamQuery(Worker& worker, Request& request) {
  return worker.driver.cuStreamQuery(request.stream);
}

CUresult handle_cuStreamSetAttribute(Worker& worker, Request& request) {
  const auto attribute = request.in.get<u32>();
  const auto value = request.in.get<CUstreamAttrValue>();
  if (!is_stream_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  return worker.driver.cuStreamSetAttribute(request.stream, static_cast<CUstreamAttrID>(attribute), &value);
}

CUresult handle_cuStreamGetAttribute(Worker& worker, Request& request) {
  const auto attribute = request.in.get<u32>();
  if (!is_stream_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  CUstreamAttrValue value{};
  const CUresult result =
      worker.driver.cuStreamGetAttribute(request.stream, static_cast<CUstreamAttrID>(attribute), &value);
  if (result == CUDA_SUCCESS) request.out->put(value);
  return result;
}

}  // namespace gpupool::worker
