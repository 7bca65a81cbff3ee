// Events. A record is a slot with a mark, so that asking for an event, or waiting for it, reads the stream's
// word.
#include "guest/runtime/manual/event.hpp"

#include <mutex>
#include <unordered_map>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/stream.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {

void set_recorded(Event& event, u32 word, u64 value) {
  const u64 record = pack_record(word, value);
  u64 before = event.recorded.load(std::memory_order_relaxed);
  // Two threads may record one event: the later ticket wins, as it does in the worker.
  while (before == kRecordedInCapture || record_value(before) < value)
    if (event.recorded.compare_exchange_weak(before, record, std::memory_order_release)) return;
}

namespace {

// A primary context lives on in the worker when the program has let go of it: its events must not.
void free_events(Context& context) {
  std::vector<Event*> made;
  g_events.each([&](Event& event) {
    if (event.context == &context) made.push_back(&event);
  });
  for (Event* event : made) api::cuEventDestroy_v2(reinterpret_cast<CUevent>(event));
}

[[maybe_unused]] const bool kRegistered = at_context_end(&free_events);

}  // namespace

CUresult make_event(CUevent* out, Context& context, u32 flags,
                    const std::function<CUresult(const Event&)>& create) {
  const wire::Handle handle = handles(wire::HandleKind::event).take();
  if (!handle) return CUDA_ERROR_OUT_OF_MEMORY;
  Event* event = g_events.create([&](Event& fresh) {
    fresh.handle = handle;
    fresh.context = &context;
    fresh.flags = flags;
  });
  if (event == nullptr) {
    handles(wire::HandleKind::event).give_back(handle);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (const CUresult result = create(*event); result != CUDA_SUCCESS) {
    g_events.destroy(event);
    handles(wire::HandleKind::event).give_back(handle);
    return result;
  }
  *out = reinterpret_cast<CUevent>(event);
  return CUDA_SUCCESS;
}

namespace api {
namespace {

constexpr u64 kRecordFollowsNs =
    1'000'000'000;  // far beyond what a record takes once its stream has got there
constexpr unsigned kEventFlags = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;

bool complete(const Session& session, u64 recorded) {
  return recorded == 0 || session.word(record_word(recorded)) >= record_value(recorded);
}

// An event of a capture has no completion to ask for. Asking ends the capture; once that is over, the event
// is one that was never properly recorded (both measured on driver 580).
CUresult refuse_captured(const Event& event, bool invalidates) {
  const std::lock_guard lock(capture_mutex());
  Capture* capture = event.capture.get();
  if (capture == nullptr || capture->ended || capture->invalidated.load(std::memory_order_acquire))
    return CUDA_ERROR_INVALID_VALUE;
  if (invalidates) capture->invalidated.store(true, std::memory_order_release);
  return CUDA_ERROR_CAPTURED_EVENT;
}

CUresult record_in_capture(Event& event, Stream& stream, const std::shared_ptr<Capture>& capture,
                           unsigned flags) {
  // Captures are rare and their errors belong to this very call: the driver answers.
  Call call(wire::Function::cuEventRecordWithFlags);
  call.on(stream);
  call.put(event.handle);
  call.put(static_cast<u32>(flags));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const std::lock_guard lock(capture_mutex());
  if (flags == CU_EVENT_RECORD_EXTERNAL) {
    note_followed_node();
  } else {
    event.capture = capture;
    event.recorded.store(kRecordedInCapture, std::memory_order_release);
  }
  return CUDA_SUCCESS;
}

// A wait that involves a capture on either side. The driver judges; on success the stream is part of the
// capture.
CUresult wait_in_capture(Stream& stream, const Event& event, unsigned flags) {
  std::shared_ptr<Capture> capture;
  {
    const std::lock_guard lock(capture_mutex());
    if (event.recorded.load(std::memory_order_acquire) == kRecordedInCapture) capture = event.capture;
    const bool over =
        capture != nullptr && (capture->ended || capture->invalidated.load(std::memory_order_acquire));
    const bool mixed = capture != nullptr && stream.capture != nullptr && capture != stream.capture;
    if (over || mixed) {
      // As driver 580 does: neither a capture that is over nor another one can be joined, and trying ends
      // both.
      if (stream.capture != nullptr) stream.capture->invalidated.store(true, std::memory_order_release);
      capture->invalidated.store(true, std::memory_order_release);
      return over ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
  }
  Call call(wire::Function::cuStreamWaitEvent);
  call.on(stream);
  call.put(event.handle);
  call.put(static_cast<u32>(flags));
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS && capture != nullptr && flags != CU_EVENT_WAIT_EXTERNAL)
    join_capture(stream, capture);
  // A wait for work outside the capture has ended it in the driver.
  if (result == CUDA_ERROR_STREAM_CAPTURE_ISOLATION) invalidate_capture(stream);
  return result;
}

// A stream of the context that the program never sees: it carries the marks of cuCtxRecordEvent.
Stream* watching_stream(Context& context, CUresult& error) {
  static auto& mutex = *new std::mutex();
  static auto& streams = *new std::unordered_map<u64, CUstream>();  // by Context::id
  const std::lock_guard lock(mutex);
  CUstream& handle = streams[context.id];
  if (handle == nullptr) {
    const ScopedContext scope(&context);
    error = api::cuStreamCreateWithPriority(&handle, CU_STREAM_NON_BLOCKING, 0);
  }
  return g_streams.find(handle);
}

CUresult query_interprocess(const Event& event) {
  Call call(wire::Function::cuEventQuery);
  call.put(event.handle);
  return call.wait();
}

// The dispatcher never waits for the GPU, so we ask again and again.
CUresult wait_interprocess(const Event& event) {
  wire::Backoff backoff(0, 500);
  while (true) {
    const CUresult result = query_interprocess(event);
    if (result != CUDA_ERROR_NOT_READY) return result;
    backoff.step();
  }
}

}  // namespace

CUresult cuEventCreate(CUevent* out, unsigned int flags) {
  if (out == nullptr || (flags & ~kEventFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if ((flags & CU_EVENT_INTERPROCESS) != 0) {
    // cuda.h: an interprocess event cannot take times.
    if ((flags & CU_EVENT_DISABLE_TIMING) == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  return make_event(out, *context, flags, [](const Event& event) {
    Call call(wire::Function::cuEventCreate);
    call.put(event.handle);
    call.put(static_cast<u32>(event.flags));
    return event.interprocess() ? call.wait() : call.send();
  });
}

CUresult cuEventDestroy_v2(CUevent handle) {
  Event* event = find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Call call(wire::Function::cuEventDestroy_v2);
  call.put(event->handle);
  const CUresult result = call.send();
  // The destruction has its ticket: whoever takes the index next comes after it.
  handles(wire::HandleKind::event).give_back(event->handle);
  g_events.destroy(event);
  return result;
}

CUresult cuEventDestroy(CUevent handle) {
  return api::cuEventDestroy_v2(handle);
}

CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream_handle, unsigned int flags) {
  if (flags > CU_EVENT_RECORD_EXTERNAL) return CUDA_ERROR_INVALID_VALUE;
  Event* event = find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(stream_handle, error);
  if (stream == nullptr) return error;
  if (stream->context != event->context) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_legacy(*stream); result != CUDA_SUCCESS) return result;
  if (const std::shared_ptr<Capture> capture = capture_of(*stream))
    return record_in_capture(*event, *stream, capture, flags);
  if (flags == CU_EVENT_RECORD_EXTERNAL) return CUDA_ERROR_ILLEGAL_STATE;  // cuda.h: only while capturing
  Call call(wire::Function::cuEventRecordWithFlags);
  call.on(*stream);
  call.mark();
  call.put(event->handle);
  call.put(static_cast<u32>(flags));
  // Another process may be told at once to wait for this record: it must have been issued by then.
  if (event->interprocess()) return call.wait();
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  set_recorded(*event, stream->handle.index(), call.ticket() + 1);
  return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  return api::cuEventRecordWithFlags(event, stream, CU_EVENT_RECORD_DEFAULT);
}

CUresult cuEventQuery(CUevent handle) {
  Event* event = find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const u64 recorded = event->recorded.load(std::memory_order_acquire);
  if (recorded == kRecordedInCapture) return refuse_captured(*event, true);
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  if (event->interprocess()) return query_interprocess(*event);
  Session& session = *Session::current();
  if (complete(session, recorded)) return session.take_async_error();
  const CUresult result = poll_for_fault(session);
  return result == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : result;
}

CUresult cuEventSynchronize(CUevent handle) {
  Event* event = find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const u64 recorded = event->recorded.load(std::memory_order_acquire);
  if (recorded == kRecordedInCapture) return refuse_captured(*event, true);
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  if (event->interprocess()) return wait_interprocess(*event);
  Session& session = *Session::current();
  if (recorded == 0) return session.take_async_error();
  return session.wait_word(record_word(recorded), record_value(recorded));
}

namespace {

// Times between records do not change, and programs ask for them again and again (one start, many ends). The
// key holds the records themselves, so a newer record or another event in the same place is another key.
struct KnownTime {
  u64 start = 0, start_recorded = 0;
  u64 end = 0, end_recorded = 0;
  float milliseconds = 0;
};
constexpr size_t kKnownTimes = 8;
thread_local KnownTime t_known_times[kKnownTimes];
thread_local size_t t_next_known_time = 0;

const KnownTime* find_time(const KnownTime& wanted) {
  for (const KnownTime& each : t_known_times)
    if (each.start == wanted.start && each.end == wanted.end &&
        each.start_recorded == wanted.start_recorded && each.end_recorded == wanted.end_recorded)
      return &each;
  return nullptr;
}

}  // namespace

CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start_handle, CUevent end_handle) {
  if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Event* start = find(start_handle);
  const Event* end = find(end_handle);
  if (start == nullptr || end == nullptr || start->context != end->context) return CUDA_ERROR_INVALID_HANDLE;
  Session& session = *Session::current();
  bool pending = false;
  const Event* const events[] = {start, end};
  u64 recorded[2] = {};
  for (int i = 0; i < 2; ++i) {
    const Event* event = events[i];
    const u64 here = recorded[i] = event->recorded.load(std::memory_order_acquire);
    if ((event->flags & CU_EVENT_DISABLE_TIMING) != 0 || here == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (here == kRecordedInCapture) return refuse_captured(*event, false);
    pending = pending || !complete(session, here);
  }
  if (pending) {
    const CUresult result = poll_for_fault(session);
    return result == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : result;
  }
  KnownTime asked{start->handle.bits, recorded[0], end->handle.bits, recorded[1]};
  if (const KnownTime* known = find_time(asked); known != nullptr) {
    *milliseconds = known->milliseconds;
    return session.take_async_error();
  }
  // The work before both events is done; the driver's own record follows the word by microseconds.
  wire::Backoff backoff(50, 100);
  while (true) {
    Call call(wire::Function::cuEventElapsedTime_v2);
    call.put(start->handle);
    call.put(end->handle);
    const CUresult result = call.wait();
    if (result == CUDA_SUCCESS) {
      asked.milliseconds = *milliseconds = call.get<float>();
      t_known_times[t_next_known_time++ % kKnownTimes] = asked;
    }
    if (result != CUDA_ERROR_NOT_READY || backoff.elapsed_ns() > kRecordFollowsNs) return result;
    backoff.step();
  }
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return api::cuEventElapsedTime_v2(milliseconds, start, end);
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent event_handle, unsigned int flags) {
  if (flags > CU_EVENT_WAIT_EXTERNAL) return CUDA_ERROR_INVALID_VALUE;
  const Event* event = find(event_handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(stream_handle, error);
  if (stream == nullptr) return error;
  if (const CUresult result = check_legacy(*stream); result != CUDA_SUCCESS) return result;
  const u64 recorded = event->recorded.load(std::memory_order_acquire);
  if (recorded == kRecordedInCapture || stream->capturing.load(std::memory_order_acquire))
    return wait_in_capture(*stream, *event, flags);
  if (flags == CU_EVENT_WAIT_EXTERNAL) return CUDA_ERROR_ILLEGAL_STATE;  // cuda.h: only while capturing
  // Complete already, or recorded on this very stream: its order says the same.
  const bool interprocess = event->interprocess();
  if (!interprocess &&
      (complete(*Session::current(), recorded) || record_word(recorded) == stream->handle.index()))
    return CUDA_SUCCESS;
  Call call(wire::Function::cuStreamWaitEvent);
  call.on(*stream);
  call.put(event->handle);
  call.put(static_cast<u32>(flags));
  // What is waited for is the record as it is now, and another process may make the next one at any time.
  return interprocess ? call.wait() : call.send();
}

CUresult cuCtxRecordEvent(CUcontext context_handle, CUevent event_handle) {
  Context* context = context_handle == nullptr ? top_context() : find(context_handle);
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  Event* event = find(event_handle);
  if (event == nullptr || event->context != context->owner) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  CUresult error = CUDA_ERROR_OUT_OF_MEMORY;
  Stream* stream = watching_stream(*context, error);
  if (stream == nullptr) return error;
  const ScopedContext scope(context);
  Call call(wire::Function::cuCtxRecordEvent);
  call.on(*stream);
  call.mark();
  call.put(event->handle);
  if (event->interprocess()) return call.wait();
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  set_recorded(*event, stream->handle.index(), call.ticket() + 1);
  return CUDA_SUCCESS;
}

CUresult cuCtxWaitEvent(CUcontext context_handle, CUevent event_handle) {
  Context* context = context_handle == nullptr ? top_context() : find(context_handle);
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  const Event* event = find(event_handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  if (event->recorded.load(std::memory_order_acquire) == kRecordedInCapture)
    return refuse_captured(*event, true);
  const ScopedContext scope(context);
  Call call(wire::Function::cuCtxWaitEvent);
  call.put(event->handle);
  return event->interprocess() ? call.wait() : call.send();
}

}  // namespace api
}  // namespace gpupool::guest
