// Events.
#include "hostd/softgpu/api/event.hpp"

#include <chrono>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

i64 now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Stands for a stream's place in its order; the recording's fence is that of the work.
void record(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Event>& event, bool external) {
  require(event->context->device == stream->context->device, CUDA_ERROR_INVALID_HANDLE);
  if (event->shared) {
    refuse_while_capturing(*stream);
    return event->shared->record(*stream);
  }
  if (record_captured(*stream, event, external)) return;
  auto operation = std::make_shared<MarkOperation>();
  const auto recording = std::make_shared<Recording>();
  operation->recording = recording;
  const std::lock_guard lock(event->mutex);  // a record and its becoming the newest are one
  recording->done = stream->submit(std::move(operation));
  event->recording = recording;
}

CUresult query(Event& event) {
  if (event.shared) return event.shared->complete() ? event.context->state() : CUDA_ERROR_NOT_READY;
  refuse_captured_event(event);
  const auto recording = event.newest();
  if (recording && !recording->done->done()) return CUDA_ERROR_NOT_READY;
  return event.context->state();
}

CUresult elapsed(float* milliseconds, CUevent start, CUevent end) {
  require(milliseconds != nullptr);
  const auto first = events().get(start), second = events().get(end);
  require((first->flags & CU_EVENT_DISABLE_TIMING) == 0 && (second->flags & CU_EVENT_DISABLE_TIMING) == 0,
          CUDA_ERROR_INVALID_HANDLE);
  first->context->require_healthy();
  const auto from = first->newest(), to = second->newest();
  require(from != nullptr && to != nullptr, CUDA_ERROR_INVALID_HANDLE);
  if (!from->done->done() || !to->done->done()) return CUDA_ERROR_NOT_READY;
  *milliseconds = static_cast<float>(static_cast<double>(to->time_ns.load() - from->time_ns.load()) / 1e6);
  return CUDA_SUCCESS;
}

CUresult record_entry(CUevent handle, CUstream stream, u32 flags) {
  require((flags & ~static_cast<u32>(CU_EVENT_RECORD_EXTERNAL)) == 0);
  record(resolve_stream(stream), events().get(handle), (flags & CU_EVENT_RECORD_EXTERNAL) != 0);
  return CUDA_SUCCESS;
}

}  // namespace

Registry<Event, CUevent>& events() {
  static auto* registry = new Registry<Event, CUevent>(3);
  return *registry;
}

void drop_events(const Context& context) {
  for (const auto& event : events().all())
    if (event->context.get() == &context) events().take(event->handle);
}

CUresult MarkOperation::run(Context&) const {
  recording->time_ns.store(now_ns());
  return CUDA_SUCCESS;
}

namespace {

// One launch's event node.
class LaunchedEventOperation final : public Operation {
 public:
  LaunchedEventOperation(std::shared_ptr<Recording> recording, bool record)
      : recording_(std::move(recording)), record_(record) {}
  LaunchedEventOperation(const LaunchedEventOperation&) = delete;
  LaunchedEventOperation& operator=(const LaunchedEventOperation&) = delete;
  // A launch that a fault cut short still lets go of those who wait.
  ~LaunchedEventOperation() override {
    if (record_) recording_->done->set();
  }
  CUgraphNodeType type() const override {
    return record_ ? CU_GRAPH_NODE_TYPE_EVENT_RECORD : CU_GRAPH_NODE_TYPE_WAIT_EVENT;
  }
  CUresult run(Context&) const override {
    if (record_) {
      recording_->time_ns.store(now_ns());
      recording_->done->set();
    } else if (recording_) {
      recording_->done->wait();
    }
    return CUDA_SUCCESS;
  }

 private:
  std::shared_ptr<Recording> recording_;
  bool record_;
};

}  // namespace

OperationPtr EventNodeOperation::for_launch() const {
  if (!record) return std::make_shared<LaunchedEventOperation>(event->newest(), false);
  auto recording = std::make_shared<Recording>();
  recording->done = std::make_shared<Completion>();
  {
    const std::lock_guard lock(event->mutex);
    event->recording = recording;
  }
  return std::make_shared<LaunchedEventOperation>(std::move(recording), true);
}

GPUPOOL_CUDA CUresult cuEventCreate(CUevent* out, unsigned int flags) {
  return call([&] {
    constexpr u32 kKnown = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    require(out != nullptr && (flags & ~kKnown) == 0);
    const bool interprocess = (flags & CU_EVENT_INTERPROCESS) != 0;
    require(!interprocess || (flags & CU_EVENT_DISABLE_TIMING) != 0);
    auto event = std::make_shared<Event>();
    if (interprocess) event->shared = SharedRecords::create();
    event->context = current_context();
    event->flags = flags;
    *out = events().add(std::move(event));
  });
}

GPUPOOL_CUDA CUresult cuEventDestroy_v2(CUevent handle) {
  return call([&] { require(events().take(handle) != nullptr, CUDA_ERROR_INVALID_HANDLE); });
}

GPUPOOL_CUDA CUresult cuEventRecord(CUevent handle, CUstream stream) {
  return call([&] { return record_entry(handle, stream, 0); });
}

GPUPOOL_CUDA CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream, unsigned int flags) {
  return call([&] { return record_entry(handle, stream, flags); });
}

// All work of a context submitted so far: a mark on a stream of its own that waits for every other one.
GPUPOOL_CUDA CUresult cuCtxRecordEvent(CUcontext handle, CUevent event_handle) {
  return call([&] {
    const auto context = context_of(handle);
    context->require_healthy();
    const auto event = events().get(event_handle);
    require(event->context == context, CUDA_ERROR_INVALID_HANDLE);
    require(event->shared == nullptr, CUDA_ERROR_NOT_SUPPORTED);
    std::vector<std::shared_ptr<Stream>> all;
    {
      const std::lock_guard lock(context->submit_mutex);
      all = context->streams;
    }
    std::vector<Fence> after;
    for (const auto& stream : all) {
      require(!stream->capturing.load(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
      if (Fence fence = stream->newest()) after.push_back(std::move(fence));
    }
    const auto collector = make_stream(context, CU_STREAM_NON_BLOCKING, 0);
    {
      const std::lock_guard lock(context->submit_mutex);
      context->streams.push_back(collector);
    }
    auto operation = std::make_shared<MarkOperation>();
    const auto recording = std::make_shared<Recording>();
    operation->recording = recording;
    const std::lock_guard lock(event->mutex);
    recording->done = collector->submit(std::move(operation), std::move(after));
    event->recording = recording;
    collector->close();
  });
}

GPUPOOL_CUDA CUresult cuCtxWaitEvent(CUcontext handle, CUevent event_handle) {
  return call([&] {
    const auto context = context_of(handle);
    context->require_healthy();
    const auto event = events().get(event_handle);
    require(event->shared == nullptr, CUDA_ERROR_NOT_SUPPORTED);
    refuse_captured_event(*event);
    const auto recording = event->newest();
    if (!recording || recording->done->done()) return;
    const std::lock_guard lock(context->submit_mutex);
    context->gates.push_back(recording->done);
  });
}

GPUPOOL_CUDA CUresult cuEventQuery(CUevent handle) {
  return call([&] { return query(*events().get(handle)); });
}

GPUPOOL_CUDA CUresult cuEventSynchronize(CUevent handle) {
  return call([&] {
    const auto event = events().get(handle);
    if (event->shared) event->shared->wait();
    refuse_captured_event(*event);
    if (const auto recording = event->newest()) recording->done->wait();
    see_frees();
    return event->context->state();
  });
}

GPUPOOL_CUDA CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return call([&] { return elapsed(milliseconds, start, end); });
}

GPUPOOL_CUDA CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return call([&] { return elapsed(milliseconds, start, end); });
}

GPUPOOL_CUDA CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int flags) {
  return call([&] {
    require((flags & ~static_cast<u32>(CU_EVENT_WAIT_EXTERNAL)) == 0);
    const auto stream = resolve_stream(handle);
    const auto event = events().get(event_handle);
    if (event->shared) {
      refuse_while_capturing(*stream);
      return event->shared->wait_on(*stream);
    }
    if (wait_captured(stream, event, (flags & CU_EVENT_WAIT_EXTERNAL) != 0)) return;
    const auto recording = event->newest();
    if (!recording || recording->done->done()) return;
    stream->submit(std::make_shared<EmptyOperation>(), {recording->done});
  });
}

}  // namespace gpupool::softgpu
