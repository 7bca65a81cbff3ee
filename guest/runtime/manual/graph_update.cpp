// New parameters for a kernel node of an executable graph. Programs that launch one graph again and again
// with other addresses (JAX, which does so for each of a step's kernels) update nodes more often than they
// launch, and only the parameters' values differ. What the driver refuses such a call for are the other
// things: those it is asked once, with a wait, and then remembered as accepted until something they depend on
// changes.
#include <cstring>

#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_params.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {
namespace {

bool same(const KernelShape& one, const KernelShape& other) {
  return one.function_epoch == other.function_epoch && one.context == other.context &&
         std::memcmp(&one.kernel, &other.kernel, sizeof one.kernel) == 0;
}

// Whether the driver has accepted this shape for the node.
bool accepted(ExecContents& exec, u64 node, const KernelShape& shape) {
  const std::lock_guard lock(exec.mutex);
  const auto found = exec.accepted.find(node);
  return found != exec.accepted.end() && same(found->second, shape);
}

void accept(ExecContents& exec, u64 node, const KernelShape& shape) {
  const std::lock_guard lock(exec.mutex);
  if (exec.source.load(std::memory_order_relaxed) != 0) exec.accepted[node] = shape;
}

}  // namespace

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec handle, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  Call call(wire::Function::cuGraphExecKernelNodeSetParams_v2);
  call.put(bits(handle));
  call.put(bits(node));
  KernelShape shape;
  if (const CUresult result = put_kernel(call, params, &shape); result != CUDA_SUCCESS) return result;
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (accepted(*exec, bits(node), shape)) return call.send();
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) accept(*exec, bits(node), shape);
  return result;
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUDA_KERNEL_NODE_PARAMS_v2 wide = widen(*params);
  return api::cuGraphExecKernelNodeSetParams_v2(exec, node, &wide);
}

}  // namespace gpupool::guest::api
