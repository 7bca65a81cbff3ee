// Stream capture's entry points.
#include <algorithm>

#include "hostd/softgpu/api/capture.hpp"

namespace gpupool::softgpu {

namespace {

struct CaptureInfo {
  CUstreamCaptureStatus* status;
  cuuint64_t* id;
  CUgraph* graph;
  const CUgraphNode** dependencies;
  const CUgraphEdgeData** edges;
  size_t* count;
};

// The arrays stay valid until the next call about this thread's captures, as cuda.h allows ("until the next
// API call that operates on the stream").
void answer(CUstream handle, const CaptureInfo& out) {
  require(out.status != nullptr);
  const auto stream = resolve_stream(handle);
  // Asking about the legacy stream while blocking ones are captured is an error of its own, and changes
  // nothing.
  require(!stream->legacy || stream->context->blocking_captures.load() == 0,
          CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  static thread_local std::vector<CUgraphNode> nodes;
  static thread_local std::vector<CUgraphEdgeData> edges;
  const std::lock_guard lock(graph_mutex());
  const auto& capture = stream->capture;
  *out.status = !capture               ? CU_STREAM_CAPTURE_STATUS_NONE
                : capture->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  if (*out.status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return;
  if (out.id != nullptr) *out.id = capture->id;
  if (out.graph != nullptr) *out.graph = capture->graph->handle;
  nodes.clear();
  for (const auto& node : stream->frontier) nodes.push_back(node->handle);
  edges.assign(nodes.size(), CUgraphEdgeData{});
  if (out.dependencies != nullptr) *out.dependencies = nodes.data();
  if (out.edges != nullptr) *out.edges = edges.data();
  if (out.count != nullptr) *out.count = nodes.size();
}

void require_plain_edges(const CUgraphEdgeData* edges, size_t count) {
  for (size_t i = 0; edges != nullptr && i < count; ++i)
    require(edges[i].from_port == 0 && edges[i].to_port == 0 && edges[i].type == 0, CUDA_ERROR_NOT_SUPPORTED);
}

void update_dependencies(CUstream handle, const CUgraphNode* dependencies, size_t count, u32 flags) {
  require(flags == CU_STREAM_ADD_CAPTURE_DEPENDENCIES || flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES);
  const auto stream = resolve_stream(handle);
  const std::lock_guard lock(graph_mutex());
  require(stream->capture != nullptr, CUDA_ERROR_ILLEGAL_STATE);
  require(!stream->capture->invalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  auto nodes = nodes_of(*stream->capture->graph, dependencies, count);
  if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES) stream->frontier.clear();
  for (auto& node : nodes)
    if (std::find(stream->frontier.begin(), stream->frontier.end(), node) == stream->frontier.end())
      stream->frontier.push_back(std::move(node));
}

}  // namespace

GPUPOOL_CUDA CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  return call([&] {
    const auto stream = resolve_stream(handle);
    const std::lock_guard lock(graph_mutex());
    begin_capture(stream, mode, nullptr, {});
  });
}

GPUPOOL_CUDA CUresult cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph_handle,
                                                  const CUgraphNode* dependencies,
                                                  const CUgraphEdgeData* edges, size_t count,
                                                  CUstreamCaptureMode mode) {
  return call([&] {
    const auto stream = resolve_stream(handle);
    const auto graph = graphs().get(graph_handle);
    require_plain_edges(edges, count);
    const std::lock_guard lock(graph_mutex());
    begin_capture(stream, mode, graph, nodes_of(*graph, dependencies, count));
  });
}

GPUPOOL_CUDA CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  return call([&] {
    require(out != nullptr);
    const auto stream = resolve_stream(handle);
    const std::lock_guard lock(graph_mutex());
    return end_capture(stream, out);
  });
}

GPUPOOL_CUDA CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  return call([&] { answer(handle, {status, nullptr, nullptr, nullptr, nullptr, nullptr}); });
}

GPUPOOL_CUDA CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status,
                                                cuuint64_t* id, CUgraph* graph,
                                                const CUgraphNode** dependencies, size_t* count) {
  return call([&] { answer(handle, {status, id, graph, dependencies, nullptr, count}); });
}

GPUPOOL_CUDA CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status,
                                                cuuint64_t* id, CUgraph* graph,
                                                const CUgraphNode** dependencies,
                                                const CUgraphEdgeData** edges, size_t* count) {
  return call([&] { answer(handle, {status, id, graph, dependencies, edges, count}); });
}

GPUPOOL_CUDA CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode* dependencies,
                                                        size_t count, unsigned int flags) {
  return call([&] { update_dependencies(handle, dependencies, count, flags); });
}

GPUPOOL_CUDA CUresult cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode* dependencies,
                                                           const CUgraphEdgeData* edges, size_t count,
                                                           unsigned int flags) {
  return call([&] {
    require_plain_edges(edges, count);
    update_dependencies(handle, dependencies, count, flags);
  });
}

GPUPOOL_CUDA CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  return call([&] {
    require(mode != nullptr && static_cast<u32>(*mode) <= CU_STREAM_CAPTURE_MODE_RELAXED);
    *mode = exchange_capture_mode(*mode);
  });
}

}  // namespace gpupool::softgpu
