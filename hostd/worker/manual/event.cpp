// Events on the worker's side. The client never asks about their completion: a record's slot carries a mark.
#include "hostd/worker/manual/capture.hpp"
#include "hostd/worker/manual/share.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kMostRecords = 64;

// The ticket of the last of the records on this stream that follow one another from here on and are in the
// ring already. No work lies between them, so one mark says it of all; what the client makes of those slots
// meanwhile is its own affair.
u64 last_in_a_row(const Worker& worker, const Request& request) {
  u64 last = request.ticket;
  while (last - request.ticket < kMostRecords) {
    const wire::Slot& next = worker.window.slot(last + 1);
    if (next.sequence.load(std::memory_order_acquire) != last + 2 ||
        next.function != static_cast<u16>(wire::Function::cuEventRecordWithFlags) ||
        next.stream != request.stream_handle || next.flags != wire::kMark)
      break;
    ++last;
  }
  return last;
}

bool mark_record(Worker& worker, const Request& request) {
  StreamEntry* stream = worker.streams.find(request.stream_handle);
  if (stream == nullptr) return false;
  if (request.flags == wire::kMark) {
    if (stream->last_mark > request.ticket) return true;  // with one before it
    return worker.mark(request.stream_handle, last_in_a_row(worker, request)) == CUDA_SUCCESS;
  }
  return worker.mark(request.stream_handle, request.ticket) == CUDA_SUCCESS;
}

}  // namespace

CUresult handle_cuEventCreate(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto flags = request.in.get<u32>();
  CUevent event = nullptr;
  const CUresult result = worker.driver.cuEventCreate(&event, flags);
  if (result == CUDA_SUCCESS) worker.events.put(handle, EventEntry{event});
  return result;
}

CUresult handle_cuEventDestroy_v2(Worker& worker, Request& request) {
  const std::optional<EventEntry> entry = worker.events.take(request.in.get<wire::Handle>());
  if (!entry) return CUDA_ERROR_INVALID_HANDLE;
  forget_shared_event(worker, entry->event);
  return worker.driver.cuEventDestroy_v2(entry->event);
}

CUresult handle_cuEventRecordWithFlags(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto flags = request.in.get<u32>();
  const EventEntry* entry = worker.events.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  // The mark comes first: when anything that waited for the event has run, the client must find the event
  // complete.
  if ((request.flags & wire::kMark) != 0) request.marked = mark_record(worker, request);
  return worker.driver.cuEventRecordWithFlags(entry->event, request.stream, flags);
}

// Only events that other processes may record; all others complete by their word.
CUresult handle_cuEventQuery(Worker& worker, Request& request) {
  const EventEntry* entry = worker.events.find(request.in.get<wire::Handle>());
  request.in.finish();
  return entry == nullptr ? CUDA_ERROR_INVALID_HANDLE : worker.driver.cuEventQuery(entry->event);
}

CUresult handle_cuStreamWaitEvent(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto flags = request.in.get<u32>();
  const EventEntry* entry = worker.events.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const CUresult result = worker.driver.cuStreamWaitEvent(request.stream, entry->event, flags);
  // Only a wait that the client knows to join a capture is answered.
  if (result == CUDA_SUCCESS && (request.flags & wire::kReply) != 0)
    note_capture(worker, request.stream_handle);
  return result;
}

CUresult handle_cuEventElapsedTime_v2(Worker& worker, Request& request) {
  const auto start_handle = request.in.get<wire::Handle>();
  const auto end_handle = request.in.get<wire::Handle>();
  const EventEntry* start = worker.events.find(start_handle);
  const EventEntry* end = worker.events.find(end_handle);
  if (start == nullptr || end == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  float milliseconds = 0;
  // The v2 form came with driver 12.8; the plain one answers the same for events of one context.
  const CUresult result = worker.driver.cuEventElapsedTime_v2 != nullptr
                              ? worker.driver.cuEventElapsedTime_v2(&milliseconds, start->event, end->event)
                              : worker.driver.cuEventElapsedTime(&milliseconds, start->event, end->event);
  if (result == CUDA_SUCCESS) request.out->put(milliseconds);
  return result;
}

CUresult handle_cuCtxRecordEvent(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const EventEntry* entry = worker.events.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (worker.driver.cuCtxRecordEvent == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto green = worker.green_contexts.find(request.stream_context);
  const CUresult result = green == worker.green_contexts.end()
                              ? worker.driver.cuCtxRecordEvent(request.context, entry->event)
                              : worker.driver.cuGreenCtxRecordEvent(green->second.context, entry->event);
  if (result != CUDA_SUCCESS) return result;
  // The slot's stream does nothing but carry the mark of this event.
  return worker.driver.cuStreamWaitEvent(request.stream, entry->event, CU_EVENT_WAIT_DEFAULT);
}

CUresult handle_cuCtxWaitEvent(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const EventEntry* entry = worker.events.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (worker.driver.cuCtxWaitEvent == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const auto green = worker.green_contexts.find(request.context_index);
  return green == worker.green_contexts.end()
             ? worker.driver.cuCtxWaitEvent(request.context, entry->event)
             : worker.driver.cuGreenCtxWaitEvent(green->second.context, entry->event);
}

}  // namespace gpupool::worker
