// Beginning, ending and asking about stream captures. See capture.hpp.
#include "guest/runtime/manual/capture.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {

std::atomic<u32> g_active_captures{0};

namespace {

// Captures between begin and end. Guarded by capture_mutex().
std::vector<std::shared_ptr<Capture>>& active() {
  static auto& captures = *new std::vector<std::shared_ptr<Capture>>();
  return captures;
}

// Under capture_mutex(): the capture is over, whatever came of it.
void close(const std::shared_ptr<Capture>& capture) {
  for (Stream* stream : capture->streams) {
    stream->capture.reset();
    stream->capturing.store(false, std::memory_order_release);
  }
  capture->streams.clear();
  capture->ended = true;
  std::erase(active(), capture);
  g_active_captures.store(static_cast<u32>(active().size()), std::memory_order_release);
}

u64 next_capture_id() {
  static std::atomic<u64> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

CUstreamCaptureStatus status_of(const std::shared_ptr<Capture>& capture) {
  if (capture == nullptr) return CU_STREAM_CAPTURE_STATUS_NONE;
  return capture->invalidated.load(std::memory_order_acquire) ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                              : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

}  // namespace

CUresult check_unsafe_call_slowly() {
  const CUstreamCaptureMode mode = thread_state().capture_mode;
  if (mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  const u32 me = thread_index();
  const std::lock_guard lock(capture_mutex());
  bool refused = false;
  for (const std::shared_ptr<Capture>& capture : active()) {
    const bool mine = capture->thread == me && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool global =
        mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!mine && !global) continue;
    capture->invalidated.store(true, std::memory_order_release);
    refused = true;
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult check_legacy_slowly(const Stream& stream, bool invalidates) {
  if (stream.context == nullptr || stream.context->legacy != &stream) return CUDA_SUCCESS;
  const std::lock_guard lock(capture_mutex());
  bool refused = false;
  for (const std::shared_ptr<Capture>& capture : active()) {
    const bool implied = std::ranges::any_of(capture->streams, [&](const Stream* each) {
      return each->context == stream.context && (each->flags & CU_STREAM_NON_BLOCKING) == 0;
    });
    if (!implied) continue;
    if (invalidates) capture->invalidated.store(true, std::memory_order_release);
    refused = true;
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
}

CUresult check_stream_slowly(const Stream& stream) {
  if (stream.capturing.load(std::memory_order_acquire)) {
    const std::lock_guard lock(capture_mutex());
    if (stream.capture != nullptr && stream.capture->invalidated.load(std::memory_order_acquire))
      return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  }
  return check_legacy_slowly(stream, true);
}

CUresult check_context_synchronize(const Context& context) {
  if (g_active_captures.load(std::memory_order_acquire) == 0) return CUDA_SUCCESS;
  const std::lock_guard lock(capture_mutex());
  bool refused = false;
  for (const std::shared_ptr<Capture>& capture : active()) {
    const bool here =
        std::ranges::any_of(capture->streams, [&](const Stream* each) { return each->context == &context; });
    if (!here) continue;
    capture->invalidated.store(true, std::memory_order_release);
    refused = true;
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

void invalidate_capture(Stream& stream) {
  const std::lock_guard lock(capture_mutex());
  if (stream.capture != nullptr) stream.capture->invalidated.store(true, std::memory_order_release);
}

CUresult refuse_capturing(Stream& stream) {
  if (!stream.capturing.load(std::memory_order_acquire)) return CUDA_SUCCESS;
  invalidate_capture(stream);
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

void join_capture(Stream& stream, const std::shared_ptr<Capture>& capture) {
  const std::lock_guard lock(capture_mutex());
  if (capture->ended || stream.capture != nullptr) return;
  stream.capture = capture;
  capture->streams.push_back(&stream);
  stream.capturing.store(true, std::memory_order_release);
}

std::shared_ptr<Capture> capture_of(const Stream& stream) {
  if (!stream.capturing.load(std::memory_order_acquire)) return nullptr;
  const std::lock_guard lock(capture_mutex());
  return stream.capture;
}

void abandon_capture(Stream& stream) {
  const std::lock_guard lock(capture_mutex());
  const std::shared_ptr<Capture> capture = stream.capture;
  if (capture == nullptr) return;
  if (capture->origin == &stream) {
    close(capture);
    return;
  }
  // Joined, and now never joined back: the driver says UNJOINED when the capture ends.
  std::erase(capture->streams, &stream);
  stream.capture.reset();
  stream.capturing.store(false, std::memory_order_release);
}

namespace api {
namespace {

CUresult begin(CUstream handle, CUstreamCaptureMode mode, Call& call, bool into_existing) {
  if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
    return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (stream->context->legacy == stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  auto capture = std::make_shared<Capture>();
  capture->id = next_capture_id();
  capture->mode = mode;
  capture->thread = thread_index();
  capture->origin = stream;
  capture->into_existing = into_existing;
  capture->contents = std::make_shared<GraphContents>();
  {
    const std::lock_guard lock(capture_mutex());
    if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = capture;
    capture->streams.push_back(stream);
    active().push_back(capture);
    g_active_captures.store(static_cast<u32>(active().size()), std::memory_order_release);
    // From here on no thread asks for a mark on this stream.
    stream->capturing.store(true, std::memory_order_release);
  }
  call.on(*stream);
  error = call.wait();
  if (error != CUDA_SUCCESS) {
    const std::lock_guard lock(capture_mutex());
    close(capture);
  }
  return error;
}

struct InfoOut {
  CUgraph* graph = nullptr;
  const CUgraphNode** dependencies = nullptr;
  const CUgraphEdgeData** edges = nullptr;
  size_t* count = nullptr;
};

// More nodes than this are not answered: a stream's next node depends on one or a few.
constexpr u64 kMostDependencies = 4096;

CUresult ask_graph(Stream& stream, const InfoOut& out) {
  Call call(wire::Function::cuStreamGetCaptureInfo_v3);
  call.on(stream);
  call.put(static_cast<u32>(out.edges != nullptr));
  call.put(kMostDependencies);
  call.expect_answer(kMostDependencies * (sizeof(u64) + sizeof(CUgraphEdgeData)) + 256);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  CaptureArrays& arrays = thread_state().capture_arrays;
  const auto graph = call.get<u64>();
  arrays.nodes.assign(kMostDependencies, nullptr);
  arrays.nodes.resize(call.get_array(arrays.nodes.data(), arrays.nodes.size()));
  arrays.edges.assign(arrays.nodes.size(), CUgraphEdgeData{});
  call.get_array(arrays.edges.data(), arrays.edges.size());
  if (out.graph != nullptr) *out.graph = reinterpret_cast<CUgraph>(graph);
  if (out.dependencies != nullptr) *out.dependencies = arrays.nodes.data();
  if (out.edges != nullptr) *out.edges = arrays.edges.data();
  if (out.count != nullptr) *out.count = arrays.nodes.size();
  return CUDA_SUCCESS;
}

CUresult info(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id, const InfoOut& out) {
  if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (g_active_captures.load(std::memory_order_acquire) == 0) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
  }
  if (const CUresult result = check_legacy_slowly(*stream, false); result != CUDA_SUCCESS) return result;
  const std::shared_ptr<Capture> capture = capture_of(*stream);
  *status = status_of(capture);
  if (capture == nullptr) return CUDA_SUCCESS;
  if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_SUCCESS;
  if (id != nullptr) *id = capture->id;
  const bool wants_graph =
      out.graph != nullptr || out.dependencies != nullptr || out.edges != nullptr || out.count != nullptr;
  return wants_graph ? ask_graph(*stream, out) : CUDA_SUCCESS;
}

CUresult update_dependencies(CUstream handle, const CUgraphNode* nodes, const CUgraphEdgeData* edges,
                             size_t count, unsigned flags) {
  if (count != 0 && nodes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (!stream->capturing.load(std::memory_order_acquire)) return CUDA_ERROR_ILLEGAL_STATE;
  Call call(wire::Function::cuStreamUpdateCaptureDependencies_v2);
  call.on(*stream);
  call.put(static_cast<u32>(flags));
  call.put_array(nodes, count);
  call.put_array(edges, edges == nullptr ? 0 : count);
  return call.wait();
}

}  // namespace

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
  Call call(wire::Function::cuStreamBeginCapture_v2);
  return begin(stream, mode, call, false);
}

CUresult cuStreamBeginCapture(CUstream stream) {
  return api::cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode* dependencies,
                                     const CUgraphEdgeData* edges, size_t count, CUstreamCaptureMode mode) {
  if (count != 0 && dependencies == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuStreamBeginCaptureToGraph);
  call.put(reinterpret_cast<u64>(graph));
  call.put_array(dependencies, count);
  call.put_array(edges, edges == nullptr ? 0 : count);
  return begin(stream, mode, call, true);
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (out != nullptr) *out = nullptr;
  const std::shared_ptr<Capture> capture = capture_of(*stream);
  if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->origin != stream) {
    capture->invalidated.store(true, std::memory_order_release);
    return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  }
  CUresult verdict = CUDA_SUCCESS;
  if (capture->invalidated.load(std::memory_order_acquire)) verdict = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != thread_index())
    verdict = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;  // and the capture is over (measured on driver 580)
  Call call(wire::Function::cuStreamEndCapture);
  call.on(*stream);
  call.put(static_cast<u32>(verdict != CUDA_SUCCESS || out == nullptr));  // 1: end it, keep nothing
  error = call.wait();
  {
    const std::lock_guard lock(capture_mutex());
    close(capture);
  }
  if (verdict != CUDA_SUCCESS) return verdict;
  if (error != CUDA_SUCCESS || out == nullptr) return error;
  const auto graph = call.get<u64>();
  if (capture->into_existing) {
    keep_for_graph(graph, *capture->contents);
  } else {
    remember_graph(graph, *capture->contents);
  }
  *out = reinterpret_cast<CUgraph>(graph);
  // What an asynchronous call inside the capture met has not become part of the graph.
  return Session::current()->take_async_error();
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  return info(handle, status, nullptr, {});
}

CUresult cuStreamGetCaptureInfo(CUstream stream, CUstreamCaptureStatus* status, cuuint64_t* id) {
  return info(stream, status, id, {});
}

CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus* status, cuuint64_t* id,
                                   CUgraph* graph, const CUgraphNode** dependencies, size_t* count) {
  return info(stream, status, id, {graph, dependencies, nullptr, count});
}

CUresult cuStreamGetCaptureInfo_v3(CUstream stream, CUstreamCaptureStatus* status, cuuint64_t* id,
                                   CUgraph* graph, const CUgraphNode** dependencies,
                                   const CUgraphEdgeData** edges, size_t* count) {
  return info(stream, status, id, {graph, dependencies, edges, count});
}

CUresult cuStreamUpdateCaptureDependencies(CUstream stream, CUgraphNode* nodes, size_t count,
                                           unsigned int flags) {
  return update_dependencies(stream, nodes, nullptr, count, flags);
}

CUresult cuStreamUpdateCaptureDependencies_v2(CUstream stream, CUgraphNode* nodes,
                                              const CUgraphEdgeData* edges, size_t count,
                                              unsigned int flags) {
  return update_dependencies(stream, nodes, edges, count, flags);
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
    return CUDA_ERROR_INVALID_VALUE;
  std::swap(*mode, thread_state().capture_mode);
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
