// Where a node goes: how every message that adds one begins, and what it answers.
#pragma once

#include "hostd/worker/manual/graph.hpp"

namespace gpupool::worker {

struct Place {
  CUgraph graph = nullptr;
  Dependencies dependencies;
};

inline CUresult read_place(Worker& worker, Request& request, Place& place) {
  const CUgraph* graph = worker.graphs.find(request.in.get<wire::Handle>());
  place.dependencies = Dependencies::read(request);
  if (graph == nullptr || !place.dependencies.resolve(worker)) return CUDA_ERROR_INVALID_VALUE;
  place.graph = *graph;
  return CUDA_SUCCESS;
}

// Adds a node through `add(CUgraphNode*, graph, dependencies, count)`. Dependencies with edge data are added
// afterwards: the older functions cannot take them.
template <typename Add>
CUresult add_node(Worker& worker, Request& request, Place& place, Add add) {
  Dependencies& dependencies = place.dependencies;
  const bool plain = dependencies.edges.empty();
  CUgraphNode node = nullptr;
  CUresult result =
      add(&node, place.graph, plain ? dependencies.data() : nullptr, plain ? dependencies.nodes.size() : 0);
  if (result != CUDA_SUCCESS) return result;
  if (!plain) {
    const std::vector<CUgraphNode> to(dependencies.nodes.size(), node);
    result = worker.driver.cuGraphAddDependencies_v2 == nullptr
                 ? CUDA_ERROR_NOT_SUPPORTED
                 : worker.driver.cuGraphAddDependencies_v2(place.graph, dependencies.data(), to.data(),
                                                           dependencies.edge_data(), to.size());
  }
  wire::Handle handle;
  if (result == CUDA_SUCCESS) {
    handle = worker.graph_nodes.find_or_add(node);
    if (!handle) result = CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (result != CUDA_SUCCESS) {
    worker.driver.cuGraphDestroyNode(node);
    return result;
  }
  request.out->put(handle);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
