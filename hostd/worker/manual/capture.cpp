// Stream capture on the worker's side. Always relaxed: one dispatcher thread serves all client threads, and
// the client enforces the mode that the program asked for.
#include "hostd/worker/manual/capture.hpp"

#include "hostd/worker/manual/graph.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kRoomForHeader = 256;  // of an answer that carries lists

}  // namespace

void note_capture(Worker& worker, wire::Handle handle) {
  StreamEntry* entry = worker.streams.find(handle);
  if (entry == nullptr) return;
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  cuuint64_t id = 0;
  const CUresult result =
      worker.driver.cuStreamGetCaptureInfo_v2(entry->stream, &status, &id, nullptr, nullptr, nullptr);
  // An invalidated capture still holds the stream until it is ended.
  entry->capturing = result == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
  if (!entry->capturing)
    entry->capture_id = 0;
  else if (status == CU_STREAM_CAPTURE_STATUS_ACTIVE)
    entry->capture_id = id;
}

void note_captures_ended(Worker& worker) {
  worker.streams.each([&](wire::Handle handle, StreamEntry& entry) {
    if (entry.capturing) note_capture(worker, handle);
  });
}

CUresult handle_cuStreamBeginCapture_v2(Worker& worker, Request& request) {
  const CUresult result =
      worker.driver.cuStreamBeginCapture_v2(request.stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  note_capture(worker, request.stream_handle);
  return result;
}

CUresult handle_cuStreamBeginCaptureToGraph(Worker& worker, Request& request) {
  const auto graph_handle = request.in.get<wire::Handle>();
  Dependencies dependencies = Dependencies::read(request);
  const CUgraph* graph = worker.graphs.find(graph_handle);
  if (graph == nullptr || !dependencies.resolve(worker)) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuStreamBeginCaptureToGraph == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const CUresult result = worker.driver.cuStreamBeginCaptureToGraph(
      request.stream, *graph, dependencies.data(), dependencies.edge_data(), dependencies.nodes.size(),
      CU_STREAM_CAPTURE_MODE_RELAXED);
  note_capture(worker, request.stream_handle);
  return result;
}

// u32 discard -> graph handle. With `discard` the client has found the capture invalid: it is ended, nothing
// is kept.
CUresult handle_cuStreamEndCapture(Worker& worker, Request& request) {
  const bool discard = request.in.get<u32>() != 0;
  const StreamEntry* entry = worker.streams.find(request.stream_handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  // The client may hold handles of the graph and its nodes from the time of the capture. Should the driver
  // throw the graph away, they must not outlive it.
  GraphNames names;
  const auto named = worker.capture_graphs.find(entry->capture_id);
  if (named != worker.capture_graphs.end()) {
    names.add(worker, named->second);
    names.graphs.push_back(worker.graphs.name_of(named->second));
    worker.capture_graphs.erase(named);
  }
  CUgraph graph = nullptr;
  const CUresult result = worker.driver.cuStreamEndCapture(request.stream, &graph);
  note_captures_ended(worker);
  if (result == CUDA_SUCCESS && !discard) {
    const wire::Handle handle = worker.graphs.find_or_add(graph);
    if (handle) {
      request.out->put(handle);
      return CUDA_SUCCESS;
    }
  }
  names.drop(worker);
  if (result != CUDA_SUCCESS) return result;
  worker.driver.cuGraphDestroy(graph);
  return discard ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

// u32 with_edges, u64 capacity -> graph handle, node handles, edge data.
CUresult handle_cuStreamGetCaptureInfo_v3(Worker& worker, Request& request) {
  const bool with_edges = request.in.get<u32>() != 0;
  const auto capacity = request.in.get<u64>();
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  cuuint64_t id = 0;
  CUgraph graph = nullptr;
  const CUgraphNode* nodes = nullptr;
  const CUgraphEdgeData* edges = nullptr;
  size_t count = 0;
  CUresult result = CUDA_SUCCESS;
  if (with_edges && worker.driver.cuStreamGetCaptureInfo_v3 != nullptr)
    result =
        worker.driver.cuStreamGetCaptureInfo_v3(request.stream, &status, &id, &graph, &nodes, &edges, &count);
  else
    result = worker.driver.cuStreamGetCaptureInfo_v2(request.stream, &status, &id, &graph, &nodes, &count);
  if (result != CUDA_SUCCESS) return result;
  if (status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  const u64 room = (request.flags & wire::kAnswerInBulk) != 0 ? request.bulk_size : u64{wire::kReplyBytes};
  if (count > capacity || count * (sizeof(wire::Handle) + sizeof(CUgraphEdgeData)) + kRoomForHeader > room)
    return CUDA_ERROR_OUT_OF_MEMORY;
  const wire::Handle graph_handle = worker.graphs.find_or_add(graph);
  if (!graph_handle) return CUDA_ERROR_OUT_OF_MEMORY;
  worker.capture_graphs[id] = graph;
  std::vector<wire::Handle> handles(count);
  for (size_t i = 0; i < count; ++i)
    if (handles[i] = worker.graph_nodes.find_or_add(nodes[i]); !handles[i]) return CUDA_ERROR_OUT_OF_MEMORY;
  request.out->put(graph_handle);
  request.out->put_array(handles.data(), handles.size());
  request.out->put_array(edges, edges == nullptr ? 0 : count);
  return CUDA_SUCCESS;
}

// u32 flags, dependencies.
CUresult handle_cuStreamUpdateCaptureDependencies_v2(Worker& worker, Request& request) {
  const auto flags = request.in.get<u32>();
  Dependencies dependencies = Dependencies::read(request);
  if (!dependencies.resolve(worker)) return CUDA_ERROR_INVALID_VALUE;
  if (!dependencies.edges.empty()) {
    if (worker.driver.cuStreamUpdateCaptureDependencies_v2 == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
    return worker.driver.cuStreamUpdateCaptureDependencies_v2(
        request.stream, dependencies.data(), dependencies.edge_data(), dependencies.nodes.size(), flags);
  }
  return worker.driver.cuStreamUpdateCaptureDependencies(request.stream, dependencies.data(),
                                                         dependencies.nodes.size(), flags);
}

}  // namespace gpupool::worker
