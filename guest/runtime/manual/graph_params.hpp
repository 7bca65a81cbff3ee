// Parameters of graph nodes, from the program's structs to the wire and back.
#pragma once

#include <cuda.h>

#include <memory>
#include <vector>

#include "guest/runtime/message.hpp"
#include "wire/cpp/copy_message.hpp"
#include "wire/cpp/graph_message.hpp"

namespace gpupool::guest {

struct GraphPiece;
struct KernelShape;

// The handle index of a context argument; 0, the current one, for null. Error INVALID_CONTEXT.
CUresult context_index(CUcontext handle, u32& index);

// Checks the parameters and appends them to the message. The result is what the driver would answer.
// `shape`, if given, is what an update of a node is judged by (graph_update.cpp).
CUresult put_kernel(Call& call, const CUDA_KERNEL_NODE_PARAMS_v2* params, KernelShape* shape = nullptr);
// The pieces of the window that stand for the program's memory are to be kept with the node.
CUresult put_copy(Call& call, const CUDA_MEMCPY3D* params, CUcontext context,
                  std::vector<std::shared_ptr<GraphPiece>>& pieces);
CUresult put_memset(Call& call, const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context);

// CUDA_KERNEL_NODE_PARAMS before CUDA 12 lacks the kernel and the context.
CUDA_KERNEL_NODE_PARAMS_v2 widen(const CUDA_KERNEL_NODE_PARAMS_v1& params);
// The same fields under another name, in CUgraphNodeParams.
CUDA_KERNEL_NODE_PARAMS_v2 widen(const CUDA_KERNEL_NODE_PARAMS_v3& params);
CUDA_MEMSET_NODE_PARAMS narrow(const CUDA_MEMSET_NODE_PARAMS_v2& params);

}  // namespace gpupool::guest
