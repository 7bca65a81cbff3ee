// The client asks for what its kernels have printed, after it has waited for them.
#include "hostd/worker/device_output.hpp"

#include <sched.h>

#include "hostd/worker/image_scan.hpp"
#include "hostd/worker/manual/context.hpp"
#include "wire/cpp/futex.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {
namespace {

// The client has seen the stream's word, which the GPU writes a little before the driver calls the stream
// done. A stream that has work again is not waited for: this is the only thread that calls the driver.
constexpr u64 kSettleNs = 2'000'000;

// The driver prints within its own synchronisations only.
CUresult synchronize_done(Worker& worker, const StreamEntry& entry) {
  bool capturing = entry.capturing;  // asking would end the capture
  if (entry.stream == CU_STREAM_LEGACY)
    worker.streams.each([&](wire::Handle, const StreamEntry& each) {
      capturing = capturing || (each.context == entry.context && each.capturing);
    });
  const CUcontext* context =
      worker.contexts.find(wire::Handle::make(wire::HandleKind::context, 0, entry.context));
  if (capturing || context == nullptr) return CUDA_SUCCESS;
  const KeepCurrent keep(worker.driver);
  worker.driver.cuCtxSetCurrent(*context);
  const u64 start = wire::monotonic_ns();
  CUresult result = worker.driver.cuStreamQuery(entry.stream);
  while (result == CUDA_ERROR_NOT_READY && wire::monotonic_ns() - start < kSettleNs) {
    sched_yield();
    result = worker.driver.cuStreamQuery(entry.stream);
  }
  if (result == CUDA_ERROR_NOT_READY) return CUDA_SUCCESS;
  return result == CUDA_SUCCESS ? worker.driver.cuStreamSynchronize(entry.stream) : result;
}

}  // namespace

// wire::Handle stream or none, u32 room -> u32 wire::Printing, u32 more, u8 printed[].
CUresult handle_output_take(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto room = request.in.get<u32>();
  request.in.finish();
  if (room > wire::kFaultTextBytes) throw wire::ProtocolError("output_take with too much room");
  const Printing state = printing();  // before: what is printed while it is still unknown is taken below
  CUresult result = CUDA_SUCCESS;
  if (const StreamEntry* entry = handle ? worker.streams.find(handle) : nullptr; entry != nullptr)
    result = synchronize_done(worker, *entry);
  if (result != CUDA_SUCCESS) return result;
  std::string printed;
  const bool more = take_printed(room, printed);
  request.out->put(static_cast<u32>(state));
  request.out->put<u32>(more ? 1 : 0);
  request.out->put_array(reinterpret_cast<const u8*>(printed.data()), printed.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
