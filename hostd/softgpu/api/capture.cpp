// Captures: how streams, events and graphs work together while one is going on. Entry points:
// capture_calls.cpp.
#include "hostd/softgpu/api/capture.hpp"

#include <algorithm>
#include <utility>

#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

std::vector<std::shared_ptr<Capture>>& active() {
  static auto* list = new std::vector<std::shared_ptr<Capture>>;
  return *list;
}

thread_local CUstreamCaptureMode t_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

void join(const std::shared_ptr<Capture>& capture, const std::shared_ptr<Stream>& stream) {
  stream->capture = capture;
  stream->capturing.store(true);
  if (stream->blocking()) stream->context->blocking_captures.fetch_add(1);
  capture->streams.push_back(stream);
}

// Adds what is not there yet, keeping the order.
void add_to(std::vector<std::shared_ptr<GraphNode>>& frontier,
            const std::vector<std::shared_ptr<GraphNode>>& more) {
  for (const auto& node : more)
    if (std::find(frontier.begin(), frontier.end(), node) == frontier.end()) frontier.push_back(node);
}

// The origin's last nodes must depend on everything that joined streams did.
bool all_joined(const Capture& capture) {
  std::vector<const GraphNode*> reached;
  std::vector<const GraphNode*> pending;
  for (const auto& node : capture.origin->frontier) pending.push_back(node.get());
  while (!pending.empty()) {
    const GraphNode* node = pending.back();
    pending.pop_back();
    if (std::find(reached.begin(), reached.end(), node) != reached.end()) continue;
    reached.push_back(node);
    for (const auto& dependency : node->dependencies) pending.push_back(dependency.get());
  }
  for (const auto& stream : capture.streams)
    for (const auto& node : stream->frontier)
      if (std::find(reached.begin(), reached.end(), node.get()) == reached.end()) return false;
  return true;
}

}  // namespace

CUstreamCaptureMode exchange_capture_mode(CUstreamCaptureMode mode) {
  return std::exchange(t_mode, mode);
}

void begin_capture(const std::shared_ptr<Stream>& stream, CUstreamCaptureMode mode,
                   std::shared_ptr<Graph> graph, std::vector<std::shared_ptr<GraphNode>> frontier) {
  static u64 next_id = 1;  // graph_mutex() is held
  require(mode == CU_STREAM_CAPTURE_MODE_GLOBAL || mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL ||
          mode == CU_STREAM_CAPTURE_MODE_RELAXED);
  require(!stream->legacy, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  require(stream->capture == nullptr, CUDA_ERROR_ILLEGAL_STATE);
  auto capture = std::make_shared<Capture>();
  capture->id = next_id++;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->into_existing = graph != nullptr;
  capture->graph = graph ? std::move(graph) : make_graph();
  capture->origin = stream.get();
  stream->frontier = std::move(frontier);
  join(capture, stream);
  active().push_back(std::move(capture));
}

// Takes all streams out of a capture.
static void leave_capture(const std::shared_ptr<Capture>& capture) {
  for (const auto& stream : capture->streams) {
    stream->capture = nullptr;
    stream->frontier.clear();
    stream->capturing.store(false);
    if (stream->blocking()) stream->context->blocking_captures.fetch_sub(1);
  }
  capture->streams.clear();
  std::erase(active(), capture);
}

CUresult end_capture(const std::shared_ptr<Stream>& stream, CUgraph* out) {
  const std::shared_ptr<Capture> capture = stream->capture;
  require(capture != nullptr, CUDA_ERROR_ILLEGAL_STATE);
  require(capture->origin == stream.get(), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  require(capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED || capture->thread == std::this_thread::get_id(),
          CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  const CUresult result = capture->invalidated    ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                          : !all_joined(*capture) ? CUDA_ERROR_STREAM_CAPTURE_UNJOINED
                                                  : CUDA_SUCCESS;
  leave_capture(capture);
  if (result == CUDA_SUCCESS)
    *out = capture->graph->handle;
  else {
    *out = nullptr;
    if (!capture->into_existing) forget_graph(capture->graph);
  }
  return result;
}

void put_on_stream(const std::shared_ptr<Stream>& stream, OperationPtr operation) {
  if (stream->capturing.load()) {
    const std::lock_guard lock(graph_mutex());
    if (const auto capture = stream->capture) {
      require(!capture->invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
      stream->frontier = {add_node(capture->graph, std::move(operation), stream->frontier)};
      return;
    }
  }
  refuse_while_capturing(*stream);
  stream->submit(std::move(operation));
}

void run_on_stream(const std::shared_ptr<Stream>& stream, OperationPtr operation) {
  refuse_while_capturing(*stream);
  const CUresult result = stream->submit_and_wait(std::move(operation));
  if (result != CUDA_SUCCESS) fail(result);
}

void refuse_while_capturing(Stream& stream) {
  if (stream.capturing.load()) {
    const std::lock_guard lock(graph_mutex());
    if (stream.capture) {
      stream.capture->invalidated = true;
      fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
  }
  if (!stream.legacy || stream.context->blocking_captures.load() == 0) return;
  const std::lock_guard lock(graph_mutex());
  for (const auto& capture : active())
    for (const auto& captured : capture->streams)
      if (captured->blocking() && captured->context == stream.context) capture->invalidated = true;
  fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
}

// cuda.h, cuThreadExchangeStreamCaptureMode: which captures make unsafe calls an error depends on this
// thread's mode.
void refuse_unsafe_call() {
  if (t_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return;
  const std::lock_guard lock(graph_mutex());
  bool refused = false;
  for (const auto& capture : active()) {
    const bool mine =
        capture->thread == std::this_thread::get_id() && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool everybodys =
        t_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!mine && !everybodys) continue;
    capture->invalidated = true;
    refused = true;
  }
  require(!refused, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

void abandon_capture(Stream& stream) {
  if (!stream.capturing.load()) return;
  const std::lock_guard lock(graph_mutex());
  const std::shared_ptr<Capture> capture = stream.capture;
  if (!capture) return;
  // One that joined stays on the list: its work never comes back to the origin, and the end says UNJOINED.
  if (capture->origin != &stream) return;
  leave_capture(capture);
  if (!capture->into_existing) forget_graph(capture->graph);
}

bool record_captured(Stream& stream, const std::shared_ptr<Event>& event, bool external) {
  const std::lock_guard lock(graph_mutex());
  if (!stream.capture) {
    event->capture = nullptr;
    event->frontier.clear();
    return false;
  }
  require(!stream.capture->invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  if (external) {
    auto operation = std::make_shared<EventNodeOperation>();
    operation->event = event;
    operation->record = true;
    stream.frontier = {add_node(stream.capture->graph, std::move(operation), stream.frontier)};
    return true;
  }
  event->capture = stream.capture;
  event->frontier = stream.frontier;
  return true;
}

bool wait_captured(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Event>& event,
                   bool external) {
  const std::lock_guard lock(graph_mutex());
  const bool event_lives = event->capture && !event->capture->streams.empty();
  if (!stream->capture) {
    if (!event_lives) return false;
    require(!stream->legacy, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    require(!event->capture->invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    join(event->capture, stream);
    stream->frontier = event->frontier;
    return true;
  }
  require(!stream->capture->invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  if (external) {
    auto operation = std::make_shared<EventNodeOperation>();
    operation->event = event;
    stream->frontier = {add_node(stream->capture->graph, std::move(operation), stream->frontier)};
    return true;
  }
  if (!event_lives || event->capture != stream->capture) {
    stream->capture->invalidated = true;
    if (event_lives) event->capture->invalidated = true;
    fail(event_lives ? CUDA_ERROR_STREAM_CAPTURE_MERGE : CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
  }
  add_to(stream->frontier, event->frontier);
  return true;
}

void refuse_captured_event(Event& event) {
  const std::lock_guard lock(graph_mutex());
  if (!event.capture || event.capture->streams.empty()) return;
  event.capture->invalidated = true;
  fail(CUDA_ERROR_CAPTURED_EVENT);
}

}  // namespace gpupool::softgpu
