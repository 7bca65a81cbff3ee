// From a node's parameters to its operation. Each checks what it is given and throws Error.
#pragma once

#include "hostd/softgpu/api/graph.hpp"

namespace gpupool::softgpu {

template <typename T>
T* non_null(T* pointer) {
  require(pointer != nullptr);
  return pointer;
}

OperationPtr make_kernel_operation(const CUDA_KERNEL_NODE_PARAMS& p);
OperationPtr make_host_operation(const CUDA_HOST_NODE_PARAMS& p);
OperationPtr make_event_operation(CUevent handle, bool record);
// A private copy of the graph. Takes graph_mutex().
OperationPtr make_child_operation(CUgraph handle);
OperationPtr make_operation(const CUgraphNodeParams* parameters);

}  // namespace gpupool::softgpu
