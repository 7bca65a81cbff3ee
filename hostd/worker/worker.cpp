#include "hostd/worker/worker.hpp"

#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/context.hpp"
#include "hostd/worker/populate.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

struct HostMark {
  std::atomic<u64>* word;
  u64 value;
};

void CUDA_CB write_word(void* argument) {
  const std::unique_ptr<HostMark> mark(static_cast<HostMark*>(argument));
  mark->word->store(mark->value, std::memory_order_release);
}

}  // namespace

CUresult Worker::mark(wire::Handle handle, u64 ticket) {
  StreamEntry* entry = streams.find(handle);
  if (entry == nullptr || handle.index() >= wire::kWords) return CUDA_ERROR_INVALID_HANDLE;
  // Nothing of ours may become part of the client's graph.
  if (entry->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  std::atomic<u64>& word = window.word(handle.index()).value;
  entry->last_mark = ticket + 1;
  if (stream_memory_operations) {
    // The barrier that the default flags imply is wanted: results must be visible before the word is.
    return driver.cuStreamWriteValue64_v2(entry->stream, reinterpret_cast<CUdeviceptr>(&word), ticket + 1, 0);
  }
  auto host_mark = std::make_unique<HostMark>(HostMark{&word, ticket + 1});
  const CUresult result = driver.cuLaunchHostFunc(entry->stream, &write_word, host_mark.get());
  if (result == CUDA_SUCCESS) static_cast<void>(host_mark.release());  // write_word owns it now
  return result;
}

CUresult Worker::register_host(void* address, u64 bytes) {
  const KeepCurrent keep(driver);
  CUresult result = driver.cuCtxSetCurrent(registration_context());
  if (result != CUDA_SUCCESS) return result;
  result =
      driver.cuMemHostRegister_v2(address, bytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
  if (result != CUDA_SUCCESS) return result;
  CUdeviceptr device = 0;
  const CUresult mapped = driver.cuMemHostGetDevicePointer_v2(&device, address, 0);
  if (mapped == CUDA_SUCCESS && device == reinterpret_cast<CUdeviceptr>(address)) return CUDA_SUCCESS;
  driver.cuMemHostUnregister(address);
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult Worker::unregister_host(void* address) {
  const KeepCurrent keep(driver);
  const CUresult result = driver.cuCtxSetCurrent(registration_context());
  return result == CUDA_SUCCESS ? driver.cuMemHostUnregister(address) : result;
}

CUresult Worker::register_window(u64 offset, u64 bytes) {
  if (offset > window.size || bytes > window.size - offset) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = register_host(window.base + offset, bytes);
  // Everything relies on one address for host and device: better no session than a wrong one.
  if (result == CUDA_ERROR_NOT_SUPPORTED)
    log(LogLevel::error, "the driver maps host memory at another device address");
  return result;
}

CUresult Worker::unregister_window(u64 offset) {
  return unregister_host(window.base + offset);
}

// Heap segments, asked for by the client's pinned allocator. Only whole pages of the heap, so that the part
// registered at the start stays as it is.
CUresult handle_window_register(Worker& worker, Request& request) {
  const u64 offset = request.in.get<u64>();
  const u64 bytes = request.in.get<u64>();
  request.in.finish();
  if (offset < wire::kHeapOffset || offset % 4096 != 0 || bytes == 0 || bytes % 4096 != 0 ||
      !worker.window.holds_data(offset, bytes))
    throw wire::ProtocolError("window_register outside the heap");
  const u64 address = reinterpret_cast<u64>(worker.at(offset));
  if (!worker.pinned.take(worker.caps, address, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  if (worker.driver_makes_pages) make_pages(worker.at(offset), bytes);
  const CUresult result = worker.register_window(offset, bytes);
  if (result != CUDA_SUCCESS) worker.pinned.give_back(address);
  return result;
}

CUresult handle_window_unregister(Worker& worker, Request& request) {
  const u64 offset = request.in.get<u64>();
  request.in.finish();
  if (offset < wire::kHeapOffset || offset >= worker.window.size)
    throw wire::ProtocolError("window_unregister outside the heap");
  const CUresult result = worker.unregister_window(offset);
  if (result == CUDA_SUCCESS) worker.pinned.give_back(reinterpret_cast<u64>(worker.at(offset)));
  return result;
}

CUresult handle_ping(Worker&, Request& request) {
  request.in.finish();
  return CUDA_SUCCESS;
}

// Whether the context has faulted, for a client that polls. Any stream of it tells, but asking one that is
// being captured, or the legacy stream meanwhile, would end the capture.
CUresult handle_fault_check(Worker& worker, Request& request) {
  request.in.finish();
  if (request.context == nullptr) return CUDA_SUCCESS;
  CUstream asked = nullptr;
  bool capturing = false;
  worker.streams.each([&](wire::Handle, const StreamEntry& entry) {
    if (entry.context != request.context_index) return;
    capturing = capturing || entry.capturing;
    if (!entry.capturing && (asked == nullptr || asked == CU_STREAM_LEGACY)) asked = entry.stream;
  });
  if (asked == nullptr || (asked == CU_STREAM_LEGACY && capturing)) return CUDA_SUCCESS;
  const CUresult result = worker.driver.cuStreamQuery(asked);
  return result == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : result;
}

}  // namespace gpupool::worker
