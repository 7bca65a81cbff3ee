// From a node's parameters to its operation. Each checks what it is given and throws Error.
#pragma once

#include <functional>

#include "hostd/softgpu/api/graph.hpp"

namespace gpupool::softgpu {

template <typename T>
T* non_null(T* pointer) {
  require(pointer != nullptr);
  return pointer;
}

// The node's operation, if it is of the type. Error INVALID_VALUE.
template <typename T>
std::shared_ptr<const T> operation_of(CUgraphNode handle) {
  const auto node = node_of(handle);
  const std::lock_guard lock(graph_mutex());
  auto operation = std::dynamic_pointer_cast<const T>(node->operation);
  require(operation != nullptr);
  return operation;
}

// Adds a node with the operation that `make` makes.
CUresult add_node_of(CUgraphNode* out, CUgraph handle, const CUgraphNode* dependencies, size_t count,
                     const std::function<OperationPtr()>& make);
// A conditional node with new graphs, which `parameters` then show.
CUresult add_conditional(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                         CUDA_CONDITIONAL_NODE_PARAMS& parameters);
// Error INVALID_VALUE when a conditional node cannot run what is in the graph. graph_mutex() is held.
void check_body(const Graph& body);

OperationPtr make_kernel_operation(const CUDA_KERNEL_NODE_PARAMS& p);
OperationPtr make_host_operation(const CUDA_HOST_NODE_PARAMS& p);
OperationPtr make_event_operation(CUevent handle, bool record);
// A private copy of the graph. Takes graph_mutex().
OperationPtr make_child_operation(CUgraph handle);
OperationPtr make_operation(const CUgraphNodeParams* parameters);

}  // namespace gpupool::softgpu
