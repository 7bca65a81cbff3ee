// Stream capture on the worker's side. Always relaxed: one dispatcher thread serves all client threads, and
// the client enforces the mode that the program asked for.
#include "hostd/worker/manual/capture.hpp"

#include <algorithm>

#include "hostd/worker/manual/graph.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kRoomForHeader = 256;  // of an answer that carries lists

// Captures that go into a graph which the client already had, by the driver's capture id: that graph outlives
// the capture, however it ends. Only the dispatcher's thread comes here.
std::unordered_map<u64, CUgraph>& captures_into_graphs() {
  static thread_local std::unordered_map<u64, CUgraph> captures;
  return captures;
}

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
  if (!entry->capturing) {
    entry->capture_id = 0;
    entry->began_capture = false;
  } else if (status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
    entry->capture_id = id;
  }
}

static void note_begun(Worker& worker, wire::Handle handle, CUresult result) {
  note_capture(worker, handle);
  if (StreamEntry* entry = worker.streams.find(handle); entry != nullptr && result == CUDA_SUCCESS)
    entry->began_capture = true;
}

void note_captures_ended(Worker& worker) {
  worker.streams.each([&](wire::Handle handle, StreamEntry& entry) {
    if (entry.capturing) note_capture(worker, handle);
  });
}

CUresult handle_cuStreamBeginCapture_v2(Worker& worker, Request& request) {
  const CUresult result =
      worker.driver.cuStreamBeginCapture_v2(request.stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  note_begun(worker, request.stream_handle, result);
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
  note_begun(worker, request.stream_handle, result);
  const StreamEntry* entry = worker.streams.find(request.stream_handle);
  if (result == CUDA_SUCCESS && entry != nullptr) captures_into_graphs()[entry->capture_id] = *graph;
  return result;
}

namespace {

// Ends a capture into a graph. What the driver takes out of the graph again must lose its handle.
CUresult end_capture_into(Worker& worker, const StreamEntry& entry, CUgraph graph) {
  GraphNames before;
  before.add(worker, graph);
  CUgraph ended = nullptr;
  const CUresult result = worker.driver.cuStreamEndCapture(entry.stream, &ended);
  note_captures_ended(worker);
  bool goes_on = false;  // only the stream where it began can end it
  worker.streams.each([&](wire::Handle, const StreamEntry& each) {
    goes_on = goes_on || (each.capturing && each.capture_id == entry.capture_id);
  });
  if (!goes_on) {
    captures_into_graphs().erase(entry.capture_id);
    worker.capture_graphs.erase(entry.capture_id);
  }
  GraphNames after;
  after.add(worker, graph);
  GraphNames gone;
  for (const wire::Handle node : before.nodes)
    if (std::find(after.nodes.begin(), after.nodes.end(), node) == after.nodes.end())
      gone.nodes.push_back(node);
  gone.drop(worker);
  return result;
}

// Ends a capture whose graph is its own and answers the graph, unless it is to be thrown away.
CUresult end_own_capture(Worker& worker, const StreamEntry& entry, bool discard, CUgraph& graph) {
  // The client may hold handles of the graph and its nodes from the time of the capture. Should the driver
  // throw the graph away, they must not outlive it.
  GraphNames names;
  const auto named = worker.capture_graphs.find(entry.capture_id);
  if (named != worker.capture_graphs.end()) {
    names.add(worker, named->second);
    names.graphs.push_back(worker.graphs.name_of(named->second));
    worker.capture_graphs.erase(named);
  }
  const CUresult result = worker.driver.cuStreamEndCapture(entry.stream, &graph);
  note_captures_ended(worker);
  if (result == CUDA_SUCCESS && !discard && worker.graphs.find_or_add(graph)) return CUDA_SUCCESS;
  if (result == CUDA_SUCCESS) {
    names.add(worker, graph);
    names.graphs.push_back(worker.graphs.name_of(graph));
  }
  names.drop(worker);
  if (result != CUDA_SUCCESS) return result;
  worker.driver.cuGraphDestroy(graph);
  graph = nullptr;
  return discard ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

// Ends the stream's capture, of whichever kind.
CUresult end_capture(Worker& worker, const StreamEntry& entry, bool discard, CUgraph& graph) {
  const auto into = captures_into_graphs().find(entry.capture_id);
  if (into == captures_into_graphs().end()) return end_own_capture(worker, entry, discard, graph);
  graph = into->second;
  return end_capture_into(worker, entry, graph);
}

}  // namespace

bool is_captured_into(const Worker& worker, CUgraph graph) {
  const auto is_it = [graph](const auto& capture) { return capture.second == graph; };
  return std::any_of(worker.capture_graphs.begin(), worker.capture_graphs.end(), is_it) ||
         std::any_of(captures_into_graphs().begin(), captures_into_graphs().end(), is_it);
}

void abandon_capture(Worker& worker, const StreamEntry& stream) {
  CUgraph graph = nullptr;
  const StreamEntry entry = stream;  // the table's own changes meanwhile
  // One that only joined does not take the capture with it; ending it there would make it invalid (driver
  // 580).
  if (entry.capturing && entry.began_capture) end_capture(worker, entry, true, graph);
}

void abandon_captures(Worker& worker, u32 context) {
  std::vector<wire::Handle> capturing;
  worker.streams.each([&](wire::Handle handle, const StreamEntry& entry) {
    if (entry.context == context && entry.capturing) capturing.push_back(handle);
  });
  for (const wire::Handle handle : capturing) abandon_capture(worker, *worker.streams.find(handle));
}

// u32 discard -> graph handle. With `discard` the client has found the capture invalid: it is ended, nothing
// is kept.
CUresult handle_cuStreamEndCapture(Worker& worker, Request& request) {
  const bool discard = request.in.get<u32>() != 0;
  const StreamEntry* found = worker.streams.find(request.stream_handle);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const StreamEntry entry = *found;
  CUgraph graph = nullptr;
  const CUresult result = end_capture(worker, entry, discard, graph);
  if (result == CUDA_SUCCESS && !discard) request.out->put(worker.graphs.name_of(graph));
  return result;
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
