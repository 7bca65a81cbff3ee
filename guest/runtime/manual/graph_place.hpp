// Where a node goes: what every function that adds one is given, and how its message begins.
#pragma once

#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/message.hpp"

namespace gpupool::guest {

struct Place {
  CUgraphNode* out;
  CUgraph graph;
  const CUgraphNode* dependencies;
  size_t count;
  const CUgraphEdgeData* edges = nullptr;

  [[nodiscard]] bool valid() const {
    return out != nullptr && graph != nullptr && (dependencies != nullptr || count == 0) &&
           count <= kNodeListLimit;
  }
  void put(Call& call) const {
    call.put(bits(graph));
    call.put_array(dependencies, count);
    call.put_array(edges, edges == nullptr ? 0 : count);
  }
  // Sends the call and takes the new node's handle.
  CUresult add(Call& call) const {
    const CUresult result = call.wait();
    if (result == CUDA_SUCCESS) *out = reinterpret_cast<CUgraphNode>(call.get<u64>());
    return result;
  }
};

// Nodes of the kinds that have a file of their own. The results are the driver's.
CUresult add_event_node(const Place& place, bool record, CUevent event);
CUresult add_memory_operations(const Place& place, CUcontext context, const CUstreamBatchMemOpParams* steps,
                               unsigned count, unsigned flags);
CUresult add_allocation(const Place& place, CUDA_MEM_ALLOC_NODE_PARAMS& params);
CUresult add_free(const Place& place, CUdeviceptr address);
CUresult add_conditional(const Place& place, CUDA_CONDITIONAL_NODE_PARAMS& params);

}  // namespace gpupool::guest
