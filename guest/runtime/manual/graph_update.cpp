// New parameters for kernel nodes and child graphs of an executable graph. Programs that launch one graph
// again and again with other addresses (JAX, which does so for each of a step's kernels and captured library
// calls) update nodes more often than they launch, and only the parameters' values differ, or one of a few
// graphs follows the other. What the driver refuses such a call for are the other things: those it is asked
// once, with a wait, and then remembered as accepted until something they depend on changes.
#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

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

constexpr size_t kMostChildren = 32;  // remembered of a node; JAX keeps sixteen captures of a call

// For each function whether g_graph_changes counts it. Of graphs' functions all but those that are known to
// leave graphs alone, so that a new one is counted.
std::array<bool, wire::kFunctionCount> changing_functions() {
  std::array<bool, wire::kFunctionCount> changing{};
  for (u16 i = 0; i < wire::kFunctionCount; ++i) {
    const auto function = static_cast<wire::Function>(i);
    const std::string_view name = wire::function_name(function);
    const auto is = [name](std::string_view prefix) { return name.starts_with(prefix); };
    changing[i] = (is("cuGraph") || is("cuStreamEndCapture") || is("cuStreamBeginCaptureToGraph") ||
                   is("cuFuncSet") || is("cuKernelSet") || is("cuModuleUnload") || is("cuLibraryUnload")) &&
                  !is("cuGraphExec") && !is("cuGraphLaunch") && !is("cuGraphUpload");
  }
  return changing;
}

bool accepted_child(ExecContents& exec, u64 node, u64 child) {
  const std::lock_guard lock(exec.mutex);
  if (exec.children_as_of != g_graph_changes.load(std::memory_order_acquire)) return false;
  const auto found = exec.accepted_children.find(node);
  return found != exec.accepted_children.end() &&
         std::ranges::find(found->second, child) != found->second.end();
}

// `as_of`: g_graph_changes before the driver was asked.
void accept_child(ExecContents& exec, u64 node, u64 child, u64 as_of) {
  const std::lock_guard lock(exec.mutex);
  if (exec.source.load(std::memory_order_relaxed) == 0) return;
  if (exec.children_as_of != as_of) exec.accepted_children.clear();
  exec.children_as_of = as_of;
  std::vector<u64>& children = exec.accepted_children[node];
  if (children.size() == kMostChildren) children.clear();
  children.push_back(child);
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

// A graph of kernels alone that the driver has accepted for this node has the node's shape for as long as
// neither changes. Other graphs are asked for each time: a copy may lead to memory that is gone by now, and
// what the client follows in them (host functions, events) has to be found out.
CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec handle, CUgraphNode node, CUgraph child) {
  Call call(wire::Function::cuGraphExecChildGraphNodeSetParams);
  call.put(bits(handle));
  call.put(bits(node));
  call.put(bits(child));
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec != nullptr && accepted_child(*exec, bits(node), bits(child))) return call.send();
  const u64 as_of = g_graph_changes.load(std::memory_order_acquire);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const bool only_kernels = call.get<u32>() != 0;
  GraphContents inherited;
  if (const CUresult result = read_contents(bits(child), inherited); result != CUDA_SUCCESS) return result;
  if (!inherited.empty())
    change_exec(handle, [&](GraphContents& contents) { contents.merge(inherited); });
  else if (only_kernels && exec != nullptr)
    accept_child(*exec, bits(node), bits(child), as_of);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::guest::api

namespace gpupool::guest {

void note_graph_change(wire::Function function) {
  static const std::array<bool, wire::kFunctionCount> kChanging = api::changing_functions();
  if (kChanging[static_cast<u16>(function)]) g_graph_changes.fetch_add(1, std::memory_order_release);
}

}  // namespace gpupool::guest
