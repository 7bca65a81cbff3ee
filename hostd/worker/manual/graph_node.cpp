// Adding and removing nodes. Every message that adds one begins with the graph and the dependencies, and
// answers the node's handle.
#include "hostd/worker/manual/graph_params.hpp"
#include "hostd/worker/manual/graph_place.hpp"
#include "hostd/worker/manual/host_function.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
CUresult handle_cuGraphAddEmptyNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  return add_node(worker, request, place, worker.driver.cuGraphAddEmptyNode);
}

CUresult handle_cuGraphAddKernelNode_v2(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  KernelNode kernel;
  if (const CUresult result = kernel.read(worker, request); result != CUDA_SUCCESS) return result;
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    return worker.driver.cuGraphAddKernelNode_v2(node, graph, from, count, &kernel.params);
                  });
}

CUresult handle_cuGraphAddMemcpyNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  CopyNode copy;
  if (const CUresult result = copy.read(worker, request); result != CUDA_SUCCESS) return result;
  return add_node(
      worker, request, place, [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
        return worker.driver.cuGraphAddMemcpyNode(node, graph, from, count, &copy.params, copy.context);
      });
}

CUresult handle_cuGraphAddMemsetNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  MemsetNode memset;
  if (const CUresult result = memset.read(worker, request); result != CUDA_SUCCESS) return result;
  return add_node(
      worker, request, place, [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
        return worker.driver.cuGraphAddMemsetNode(node, graph, from, count, &memset.params, memset.context);
      });
}

CUresult handle_cuGraphAddHostNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  const CUDA_HOST_NODE_PARAMS params{client_function(worker), client_argument(request.in.get<u32>())};
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    return worker.driver.cuGraphAddHostNode(node, graph, from, count, &params);
                  });
}

// ..., child graph, u32 CUgraphChildGraphNodeOwnership.
CUresult handle_cuGraphAddChildGraphNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  const CUgraph* child = worker.graphs.find(request.in.get<wire::Handle>());
  const auto ownership = request.in.get<u32>();
  if (child == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    if (ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE)
                      return worker.driver.cuGraphAddChildGraphNode(node, graph, from, count, *child);
                    if (ownership != CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE) return CUDA_ERROR_INVALID_VALUE;
                    if (worker.driver.cuGraphAddNode == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
                    CUgraphNodeParams params{};
                    params.type = CU_GRAPH_NODE_TYPE_GRAPH;
                    params.graph.graph = *child;
                    params.graph.ownership = CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE;
                    return worker.driver.cuGraphAddNode(node, graph, from, count, &params);
                  });
}

CUresult handle_cuGraphAddEventRecordNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  const EventEntry* event = worker.events.find(request.in.get<wire::Handle>());
  if (event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    return worker.driver.cuGraphAddEventRecordNode(node, graph, from, count, event->event);
                  });
}

CUresult handle_cuGraphAddEventWaitNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  const EventEntry* event = worker.events.find(request.in.get<wire::Handle>());
  if (event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    return worker.driver.cuGraphAddEventWaitNode(node, graph, from, count, event->event);
                  });
}

CUresult handle_cuGraphDestroyNode(Worker& worker, Request& request) {
  const CUgraphNode* node = worker.graph_nodes.find(request.in.get<wire::Handle>());
  if (node == nullptr) return CUDA_ERROR_INVALID_VALUE;
  GraphNames names;
  names.add_node(worker, *node);
  const CUresult result = worker.driver.cuGraphDestroyNode(*node);
  if (result == CUDA_SUCCESS) names.drop(worker);
  return result;
}

}  // namespace gpupool::worker
