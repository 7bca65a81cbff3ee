// Graphs and executable graphs as wholes. Nodes are in graph_node.cpp, their parameters in graph_params.cpp.
#include "hostd/worker/manual/graph.hpp"

#include "hostd/worker/manual/capture.hpp"
#include "wire/cpp/graph_message.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {

Dependencies Dependencies::read(Request& request) {
  Dependencies result;
  result.handles = request.in.get_array<wire::Handle>(kMaxNodes);
  result.edges = request.in.get_array<CUgraphEdgeData>(kMaxNodes);
  if (!result.edges.empty() && result.edges.size() != result.handles.size())
    throw wire::ProtocolError("as many edges as nodes were expected");
  return result;
}

bool Dependencies::resolve(Worker& worker) {
  nodes.reserve(handles.size());
  for (const wire::Handle handle : handles) {
    const CUgraphNode* node = worker.graph_nodes.find(handle);
    if (node == nullptr) return false;
    nodes.push_back(*node);
  }
  return true;
}

void GraphNames::add(Worker& worker, CUgraph graph) {
  std::vector<CUgraphNode> found;
  if (nodes_of(worker, graph, found) != CUDA_SUCCESS) return;
  for (const CUgraphNode node : found) add_node(worker, node);
}

void GraphNames::add_node(Worker& worker, CUgraphNode node) {
  if (const wire::Handle name = worker.graph_nodes.name_of(node)) nodes.push_back(name);
  for (const CUgraph inner : graphs_inside(worker, node)) {
    if (const wire::Handle name = worker.graphs.name_of(inner)) graphs.push_back(name);
    add(worker, inner);
  }
  if (worker.conditional_bodies.contains(node)) conditionals.push_back(node);
}

void GraphNames::drop(Worker& worker) {
  for (const wire::Handle name : nodes) worker.graph_nodes.take(name);
  for (const wire::Handle name : graphs) worker.graphs.take(name);
  for (const CUgraphNode node : conditionals) worker.conditional_bodies.erase(node);
}

CUresult nodes_of(Worker& worker, CUgraph graph, std::vector<CUgraphNode>& nodes) {
  size_t count = 0;
  CUresult result = worker.driver.cuGraphGetNodes(graph, nullptr, &count);
  if (result != CUDA_SUCCESS || count == 0) return result;
  nodes.resize(count);
  result = worker.driver.cuGraphGetNodes(graph, nodes.data(), &count);
  nodes.resize(result == CUDA_SUCCESS ? std::min(count, nodes.size()) : 0);
  return result;
}

std::vector<CUgraph> graphs_inside(Worker& worker, CUgraphNode node) {
  CUgraphNodeType type{};
  if (worker.driver.cuGraphNodeGetType(node, &type) != CUDA_SUCCESS) return {};
  if (type == CU_GRAPH_NODE_TYPE_CONDITIONAL) {
    const auto known = worker.conditional_bodies.find(node);
    return known == worker.conditional_bodies.end() ? std::vector<CUgraph>{} : known->second;
  }
  CUgraph child = nullptr;
  if (type != CU_GRAPH_NODE_TYPE_GRAPH ||
      worker.driver.cuGraphChildGraphNodeGetGraph(node, &child) != CUDA_SUCCESS)
    return {};
  return {child};
}

namespace {

// Puts a graph that the driver made for the client into the table and answers its handle.
CUresult answer_graph(Worker& worker, Request& request, CUgraph graph) {
  const wire::Handle handle = worker.graphs.find_or_add(graph);
  if (!handle) {
    worker.driver.cuGraphDestroy(graph);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  request.out->put(handle);
  return CUDA_SUCCESS;
}

// Names the graphs inside one, and their counterparts in a copy of it if there is one.
CUresult list_inside(Worker& worker, CUgraph graph, CUgraph copy, std::vector<wire::InnerGraph>& out) {
  std::vector<CUgraphNode> nodes;
  if (const CUresult result = nodes_of(worker, graph, nodes); result != CUDA_SUCCESS) return result;
  for (const CUgraphNode node : nodes) {
    const std::vector<CUgraph> inner = graphs_inside(worker, node);
    if (inner.empty()) continue;
    CUgraphNode twin = nullptr;
    std::vector<CUgraph> copies;
    // Child graphs are copies that the driver knows by it too, not those of cuGraphClone alone.
    if (copy != nullptr && worker.driver.cuGraphNodeFindInClone(&twin, node, copy) == CUDA_SUCCESS)
      copies = graphs_inside(worker, twin);
    copies.resize(inner.size());
    for (size_t i = 0; i < inner.size(); ++i) {
      const wire::Handle name = worker.graphs.find_or_add(inner[i]);
      const wire::Handle other = copies[i] == nullptr ? wire::Handle{} : worker.graphs.find_or_add(copies[i]);
      if (!name || out.size() >= kMaxNodes) return CUDA_ERROR_OUT_OF_MEMORY;
      out.push_back({name.bits, other.bits});
      if (const CUresult result = list_inside(worker, inner[i], copies[i], out); result != CUDA_SUCCESS)
        return result;
    }
  }
  return CUDA_SUCCESS;
}

CUgraph* read_graph(Worker& worker, Request& request) {
  return worker.graphs.find(request.in.get<wire::Handle>());
}

CUgraphExec* read_exec(Worker& worker, Request& request) {
  return worker.graph_execs.find(request.in.get<wire::Handle>());
}

}  // namespace

CUresult handle_cuGraphCreate(Worker& worker, Request& request) {
  CUgraph graph = nullptr;
  const CUresult result = worker.driver.cuGraphCreate(&graph, 0);
  return result == CUDA_SUCCESS ? answer_graph(worker, request, graph) : result;
}

CUresult handle_cuGraphDestroy(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const CUgraph* found = worker.graphs.find(handle);
  if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUgraph graph = *found;
  if (is_captured_into(worker, graph)) return CUDA_ERROR_INVALID_VALUE;
  GraphNames names;
  names.add(worker, graph);
  const CUresult result = worker.driver.cuGraphDestroy(graph);
  if (result != CUDA_SUCCESS) return result;
  names.drop(worker);
  worker.graphs.take(handle);
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphClone(Worker& worker, Request& request) {
  const CUgraph* original = read_graph(worker, request);
  if (original == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUgraph graph = nullptr;
  const CUresult result = worker.driver.cuGraphClone(&graph, *original);
  return result == CUDA_SUCCESS ? answer_graph(worker, request, graph) : result;
}

// graph, a copy of it or 0, u64 room -> u64 count, and if that is no more than the room InnerGraph[].
CUresult handle_graph_inside(Worker& worker, Request& request) {
  const CUgraph* graph = read_graph(worker, request);
  const CUgraph* copy = read_graph(worker, request);
  const auto room = request.in.get<u64>();
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::vector<wire::InnerGraph> inner;
  const CUresult result = list_inside(worker, *graph, copy == nullptr ? nullptr : *copy, inner);
  if (result != CUDA_SUCCESS) return result;
  request.out->put<u64>(inner.size());
  if (inner.size() <= room) request.out->put_array(inner.data(), inner.size());
  return CUDA_SUCCESS;
}

// graph, u64 flags, upload stream or 0 -> exec, error node, u32 CUgraphInstantiateResult. Every form of the
// function is sent as this one. The answer is complete on errors too.
CUresult handle_cuGraphInstantiateWithParams(Worker& worker, Request& request) {
  const CUgraph* graph = read_graph(worker, request);
  CUDA_GRAPH_INSTANTIATE_PARAMS params{};
  params.flags = request.in.get<u64>();
  const auto upload = request.in.get<wire::Handle>();
  CUgraphExec exec = nullptr;
  CUresult result = graph == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  if (result == CUDA_SUCCESS && (params.flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0) {
    const StreamEntry* stream = worker.streams.find(upload);
    if (stream == nullptr)
      result = CUDA_ERROR_INVALID_HANDLE;
    else
      params.hUploadStream = stream->stream;
  }
  // A graph that kernels launch would bypass the lease that gates streams, and its launches cannot be
  // followed.
  if ((params.flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH) != 0) result = CUDA_ERROR_NOT_SUPPORTED;
  if (result == CUDA_SUCCESS) result = worker.driver.cuGraphInstantiateWithParams(&exec, *graph, &params);
  wire::Handle exec_handle;
  wire::Handle error_node;
  if (result == CUDA_SUCCESS) {
    exec_handle = worker.graph_execs.add(exec);
    if (!exec_handle) {
      worker.driver.cuGraphExecDestroy(exec);
      result = CUDA_ERROR_OUT_OF_MEMORY;
    }
  } else if (params.hErrNode_out != nullptr) {
    error_node = worker.graph_nodes.find_or_add(params.hErrNode_out);
  }
  request.out->put(exec_handle);
  request.out->put(error_node);
  request.out->put(static_cast<u32>(params.result_out));
  return result;
}

CUresult handle_cuGraphExecDestroy(Worker& worker, Request& request) {
  const std::optional<CUgraphExec> exec = worker.graph_execs.take(request.in.get<wire::Handle>());
  // cuda.h: launches in flight go on, the driver frees it after them.
  return exec ? worker.driver.cuGraphExecDestroy(*exec) : CUDA_ERROR_INVALID_VALUE;
}

CUresult handle_cuGraphLaunch(Worker& worker, Request& request) {
  const CUgraphExec* exec = read_exec(worker, request);
  return exec == nullptr ? CUDA_ERROR_INVALID_VALUE : worker.driver.cuGraphLaunch(*exec, request.stream);
}

CUresult handle_cuGraphUpload(Worker& worker, Request& request) {
  const CUgraphExec* exec = read_exec(worker, request);
  return exec == nullptr ? CUDA_ERROR_INVALID_VALUE : worker.driver.cuGraphUpload(*exec, request.stream);
}

// exec, graph -> u32 CUgraphExecUpdateResult, error node, error-from node; complete on errors too.
CUresult handle_cuGraphExecUpdate_v2(Worker& worker, Request& request) {
  const CUgraphExec* exec = read_exec(worker, request);
  const CUgraph* graph = read_graph(worker, request);
  CUgraphExecUpdateResultInfo info{};
  info.result = CU_GRAPH_EXEC_UPDATE_ERROR;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  if (exec != nullptr && graph != nullptr) result = worker.driver.cuGraphExecUpdate_v2(*exec, *graph, &info);
  const auto name = [&](CUgraphNode node) {
    return node == nullptr ? wire::Handle{} : worker.graph_nodes.find_or_add(node);
  };
  request.out->put(static_cast<u32>(info.result));
  request.out->put(name(info.errorNode));
  request.out->put(name(info.errorFromNode));
  return result;
}

}  // namespace gpupool::worker
