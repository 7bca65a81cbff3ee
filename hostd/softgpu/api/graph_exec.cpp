// Executable graphs: instantiating, launching, changing.
#include <algorithm>
#include <functional>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/graph_memory.hpp"
#include "hostd/softgpu/api/graph_nodes.hpp"
#include "hostd/softgpu/api/launch.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

CUgraphExec instantiate(CUgraph handle, u64 flags) {
  constexpr u64 kKnown = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH |
                         CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD | CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
  require((flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH) == 0, CUDA_ERROR_NOT_SUPPORTED);
  require((flags & ~kKnown) == 0);
  const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
  auto exec = std::make_shared<GraphExec>();
  exec->flags = flags;
  const std::lock_guard lock(graph_mutex());
  exec->steps = steps_of(*graph);
  exec->conditions = graph->conditions;
  exec->user_objects = graph->user_objects;
  for (const auto& object : exec->user_objects) object->references.fetch_add(1);
  return graph_execs().add(std::move(exec));
}

// Replaces one step's operation; launches under way keep the old list.
// Of child graphs: the driver wants the same topology and the same order of insertion.
bool same_shape(const Operation& one, const Operation& other) {
  if (one.type() != CU_GRAPH_NODE_TYPE_GRAPH) return true;
  const auto& before = static_cast<const GraphOperation&>(one).steps;
  const auto& after = static_cast<const GraphOperation&>(other).steps;
  return std::ranges::equal(*before, *after, [](const GraphStep& a, const GraphStep& b) {
    return a.operation->type() == b.operation->type() && same_shape(*a.operation, *b.operation);
  });
}

CUresult replace(CUgraphExec handle, CUgraphNode node, const std::function<OperationPtr()>& make) {
  return call([&] {
    const auto exec = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);
    OperationPtr operation = make();
    const std::lock_guard lock(graph_mutex());
    auto steps = std::make_shared<std::vector<GraphStep>>(*exec->steps);
    for (GraphStep& step : *steps)
      if (step.node == node) {
        require(step.operation->type() == operation->type());
        require(same_shape(*step.operation, *operation));
        step.operation = std::move(operation);
        exec->steps = std::move(steps);
        return;
      }
    fail(CUDA_ERROR_INVALID_VALUE);
  });
}

GraphStep& step_of(std::vector<GraphStep>& steps, CUgraphNode node) {
  for (GraphStep& step : steps)
    if (step.node == node) return step;
  fail(CUDA_ERROR_INVALID_VALUE);
}

bool can_be_disabled(CUgraphNodeType type) {
  return type == CU_GRAPH_NODE_TYPE_KERNEL || type == CU_GRAPH_NODE_TYPE_MEMCPY ||
         type == CU_GRAPH_NODE_TYPE_MEMSET;
}

// Takes over the operations of a graph of the same shape, or says at which node the two differ.
CUresult update(GraphExec& exec, const Graph& graph, CUgraphNode* error_node,
                CUgraphExecUpdateResult* reason) {
  *error_node = nullptr;
  *reason = CU_GRAPH_EXEC_UPDATE_SUCCESS;
  const auto nodes = sorted(graph);
  if (nodes.size() != exec.steps->size()) {
    *reason = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
  }
  auto steps = std::make_shared<std::vector<GraphStep>>(*exec.steps);
  for (u64 i = 0; i < nodes.size(); ++i) {
    if (nodes[i]->operation->type() != (*steps)[i].operation->type()) {
      *error_node = nodes[i]->handle;
      *reason = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
      return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
  }
  const auto fresh = steps_of(graph);
  for (u64 i = 0; i < nodes.size(); ++i) (*steps)[i].operation = (*fresh)[i].operation;
  exec.conditions = graph.conditions;
  exec.steps = std::move(steps);
  return CUDA_SUCCESS;
}

}  // namespace

GPUPOOL_CUDA CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  return call([&] {
    require(out != nullptr);
    *out = instantiate(graph, flags);
  });
}

GPUPOOL_CUDA CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph,
                                                   CUDA_GRAPH_INSTANTIATE_PARAMS* p) {
  return call([&] {
    require(out != nullptr && p != nullptr);
    p->hErrNode_out = nullptr;
    p->result_out = CUDA_GRAPH_INSTANTIATE_ERROR;
    *out = instantiate(graph, p->flags);
    p->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
  });
}

GPUPOOL_CUDA CUresult cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t* flags) {
  return call([&] {
    require(flags != nullptr);
    *flags = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE)->flags;
  });
}

GPUPOOL_CUDA CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return call([&] { require(graph_execs().take(handle) != nullptr, CUDA_ERROR_INVALID_VALUE); });
}

GPUPOOL_CUDA CUresult cuGraphUpload(CUgraphExec handle, CUstream stream) {
  return call([&] {
    graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);  // there is nowhere to upload it to
    resolve_stream(stream);
  });
}

GPUPOOL_CUDA CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  return call([&] {
    const auto exec = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const auto stream = resolve_stream(stream_handle);
    // A launch does not become part of a graph (measured on driver 580).
    refuse_while_capturing(*stream);
    auto operation = std::make_shared<GraphOperation>();
    const std::lock_guard lock(graph_mutex());
    note_memory_of_launch(*exec->steps, (exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) != 0);
    operation->steps = steps_of_launch(exec->steps);
    operation->conditions = exec->conditions;
    std::vector<Fence> after;
    if (exec->last && !exec->last->done()) after.push_back(exec->last);
    exec->last = stream->submit(std::move(operation), std::move(after));
  });
}

GPUPOOL_CUDA CUresult cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph_handle,
                                           CUgraphExecUpdateResultInfo* info) {
  return call([&] {
    const auto exec = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const auto graph = graphs().get(graph_handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    CUgraphExecUpdateResultInfo answer{};
    const CUresult result = update(*exec, *graph, &answer.errorNode, &answer.result);
    if (info != nullptr) *info = answer;
    return result;
  });
}

GPUPOOL_CUDA CUresult cuGraphExecUpdate(CUgraphExec handle, CUgraph graph_handle, CUgraphNode* node,
                                        CUgraphExecUpdateResult* reason) {
  return call([&] {
    require(reason != nullptr);
    const auto exec = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const auto graph = graphs().get(graph_handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    CUgraphNode unused = nullptr;
    return update(*exec, *graph, node != nullptr ? node : &unused, reason);
  });
}

GPUPOOL_CUDA CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                        const CUDA_KERNEL_NODE_PARAMS* p) {
  return replace(exec, node, [&] { return make_kernel_operation(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                     const CUDA_MEMCPY3D* p, CUcontext) {
  return replace(exec, node, [&] { return make_copy(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                     const CUDA_MEMSET_NODE_PARAMS* p, CUcontext) {
  return replace(exec, node, [&] { return make_memset(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                   const CUDA_HOST_NODE_PARAMS* p) {
  return replace(exec, node, [&] { return make_host_operation(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child) {
  return replace(exec, node, [&] {
    const OperationPtr made = make_child_operation(child);
    auto step = std::make_shared<GraphOperation>();
    const std::lock_guard lock(graph_mutex());
    step->graph = static_cast<const GraphOperation*>(made.get())->graph;
    step->steps = steps_of(*step->graph);
    return step;
  });
}

GPUPOOL_CUDA CUresult cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  return replace(exec, node, [&] { return make_event_operation(event, true); });
}

GPUPOOL_CUDA CUresult cuGraphExecEventWaitNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  return replace(exec, node, [&] { return make_event_operation(event, false); });
}

GPUPOOL_CUDA CUresult cuGraphExecBatchMemOpNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                         const CUDA_BATCH_MEM_OP_NODE_PARAMS* p) {
  return replace(exec, node, [&] { return make_value_operation(non_null(p)->paramArray, p->count); });
}

GPUPOOL_CUDA CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams* p) {
  return replace(exec, node, [&] { return make_operation(p); });
}

GPUPOOL_CUDA CUresult cuGraphNodeSetEnabled(CUgraphExec handle, CUgraphNode node, unsigned int enabled) {
  return call([&] {
    const auto exec = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    auto steps = std::make_shared<std::vector<GraphStep>>(*exec->steps);
    GraphStep& step = step_of(*steps, node);
    require(can_be_disabled(step.operation->type()));
    step.enabled = enabled != 0;
    exec->steps = std::move(steps);
  });
}

GPUPOOL_CUDA CUresult cuGraphNodeGetEnabled(CUgraphExec handle, CUgraphNode node, unsigned int* enabled) {
  return call([&] {
    require(enabled != nullptr);
    const auto exec = graph_execs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    auto steps = *exec->steps;
    const GraphStep& step = step_of(steps, node);
    require(can_be_disabled(step.operation->type()));
    *enabled = step.enabled ? 1 : 0;
  });
}

}  // namespace gpupool::softgpu
