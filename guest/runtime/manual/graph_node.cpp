// Adding nodes to graphs and changing what the nodes of an executable graph refer to in the client.
#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_params.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {
namespace {

// Where a node goes: what every function that adds one is given.
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
};

// Sends the call and takes the new node's handle.
CUresult add(Call& call, const Place& place) {
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) *place.out = reinterpret_cast<CUgraphNode>(call.get<u64>());
  return result;
}

CUresult add_empty(const Place& place) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddEmptyNode);
  place.put(call);
  return add(call, place);
}

CUresult add_kernel(const Place& place, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddKernelNode_v2);
  place.put(call);
  const CUresult result = put_kernel(call, params);
  return result == CUDA_SUCCESS ? add(call, place) : result;
}

CUresult add_copy(const Place& place, const CUDA_MEMCPY3D* params, CUcontext context) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddMemcpyNode);
  place.put(call);
  const CUresult result = put_copy(call, params, context);
  return result == CUDA_SUCCESS ? add(call, place) : result;
}

CUresult add_memset(const Place& place, const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddMemsetNode);
  place.put(call);
  const CUresult result = put_memset(call, params, context);
  return result == CUDA_SUCCESS ? add(call, place) : result;
}

CUresult add_host(const Place& place, CUhostFn function, void* data) {
  if (!place.valid() || function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<HostCall> host_call = make_host_call(function, data);
  Call call(wire::Function::cuGraphAddHostNode);
  place.put(call);
  call.put(host_call->id);
  const CUresult result = add(call, place);
  if (result != CUDA_SUCCESS) return result;
  with_graph(bits(place.graph), [&](GraphContents& contents) { contents.host_calls.push_back(host_call); });
  return CUDA_SUCCESS;
}

CUresult add_child(const Place& place, CUgraph child) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddChildGraphNode);
  place.put(call);
  call.put(bits(child));
  const CUresult result = add(call, place);
  if (result != CUDA_SUCCESS) return result;
  const GraphContents inherited = contents_of(bits(child));
  with_graph(bits(place.graph), [&](GraphContents& contents) { contents.merge(inherited); });
  return CUDA_SUCCESS;
}

CUresult add_event(const Place& place, wire::Function function, CUevent handle) {
  Event* event = find(handle);
  if (!place.valid() || event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(function);
  place.put(call);
  call.put(event->handle);
  const CUresult result = add(call, place);
  if (result == CUDA_SUCCESS && function == wire::Function::cuGraphAddEventRecordNode)
    with_graph(bits(place.graph),
               [&](GraphContents& contents) { contents.records.push_back({event, event->handle}); });
  return result;
}

// Replaces what an executable graph refers to by a copy with `change` applied: launches in flight keep
// theirs.
void change_exec(CUgraphExec handle, const std::function<void(GraphContents&)>& change) {
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr) return;
  const std::lock_guard lock(exec->mutex);
  auto contents = std::make_shared<GraphContents>(*exec->contents);
  change(*contents);
  exec->contents = std::move(contents);
}

CUresult unsupported_type(CUgraphNodeType type) {
  switch (type) {
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
      log_unsupported("conditional graph nodes");
      break;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      log_unsupported("graph memory nodes");
      break;
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
      log_unsupported("memory operation and semaphore nodes in graphs");
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult add_any(const Place& place, const CUgraphNodeParams* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: {
      const CUDA_KERNEL_NODE_PARAMS_v2 kernel = widen(params->kernel);
      return add_kernel(place, &kernel);
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return add_copy(place, &params->memcpy.copyParams, params->memcpy.copyCtx);
    case CU_GRAPH_NODE_TYPE_MEMSET: {
      const CUDA_MEMSET_NODE_PARAMS fill = narrow(params->memset);
      return add_memset(place, &fill, params->memset.ctx);
    }
    case CU_GRAPH_NODE_TYPE_HOST:
      return add_host(place, params->host.fn, params->host.userData);
    case CU_GRAPH_NODE_TYPE_GRAPH:
      if (params->graph.ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE)
        return add_child(place, params->graph.graph);
      log_unsupported("child graphs that are moved into their parent");
      return CUDA_ERROR_NOT_SUPPORTED;
    case CU_GRAPH_NODE_TYPE_EMPTY:
      return add_empty(place);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return add_event(place, wire::Function::cuGraphAddEventWaitNode, params->eventWait.event);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return add_event(place, wire::Function::cuGraphAddEventRecordNode, params->eventRecord.event);
    default:
      return unsupported_type(params->type);
  }
}

}  // namespace

CUresult cuGraphAddEmptyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count) {
  return add_empty({out, graph, dependencies, count});
}

CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                 size_t count, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  return add_kernel({out, graph, dependencies, count}, params);
}

CUresult cuGraphAddKernelNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUDA_KERNEL_NODE_PARAMS_v2 wide = widen(*params);
  return add_kernel({out, graph, dependencies, count}, &wide);
}

CUresult cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              const CUDA_MEMCPY3D* params, CUcontext context) {
  return add_copy({out, graph, dependencies, count}, params, context);
}

CUresult cuGraphAddMemsetNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                              const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context) {
  return add_memset({out, graph, dependencies, count}, params, context);
}

CUresult cuGraphAddHostNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                            const CUDA_HOST_NODE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add_host({out, graph, dependencies, count}, params->fn, params->userData);
}

CUresult cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                  size_t count, CUgraph child) {
  return add_child({out, graph, dependencies, count}, child);
}

CUresult cuGraphAddEventRecordNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                   size_t count, CUevent event) {
  return add_event({out, graph, dependencies, count}, wire::Function::cuGraphAddEventRecordNode, event);
}

CUresult cuGraphAddEventWaitNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                 size_t count, CUevent event) {
  return add_event({out, graph, dependencies, count}, wire::Function::cuGraphAddEventWaitNode, event);
}

CUresult cuGraphAddNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                           const CUgraphEdgeData* edges, size_t count, CUgraphNodeParams* params) {
  return add_any({out, graph, dependencies, count, edges}, params);
}

CUresult cuGraphAddNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                        CUgraphNodeParams* params) {
  return add_any({out, graph, dependencies, count}, params);
}

CUresult cuGraphDestroyNode(CUgraphNode node) {
  Call call(wire::Function::cuGraphDestroyNode);
  call.put(bits(node));
  return call.wait();
}

CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (params->type == CU_GRAPH_NODE_TYPE_KERNEL) {
    const CUDA_KERNEL_NODE_PARAMS_v2 kernel = widen(params->kernel);
    return api::cuGraphKernelNodeSetParams_v2(node, &kernel);
  }
  if (params->type == CU_GRAPH_NODE_TYPE_MEMCPY)
    return api::cuGraphMemcpyNodeSetParams(node, &params->memcpy.copyParams);
  if (params->type == CU_GRAPH_NODE_TYPE_MEMSET) {
    const CUDA_MEMSET_NODE_PARAMS fill = narrow(params->memset);
    return api::cuGraphMemsetNodeSetParams(node, &fill);
  }
  if (params->type == CU_GRAPH_NODE_TYPE_WAIT_EVENT)
    return api::cuGraphEventWaitNodeSetEvent(node, params->eventWait.event);
  log_unsupported("cuGraphNodeSetParams for this type of node");
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: {
      const CUDA_KERNEL_NODE_PARAMS_v2 kernel = widen(params->kernel);
      return api::cuGraphExecKernelNodeSetParams_v2(exec, node, &kernel);
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return api::cuGraphExecMemcpyNodeSetParams(exec, node, &params->memcpy.copyParams,
                                                 params->memcpy.copyCtx);
    case CU_GRAPH_NODE_TYPE_MEMSET: {
      const CUDA_MEMSET_NODE_PARAMS fill = narrow(params->memset);
      return api::cuGraphExecMemsetNodeSetParams(exec, node, &fill, params->memset.ctx);
    }
    case CU_GRAPH_NODE_TYPE_HOST: {
      const CUDA_HOST_NODE_PARAMS host{params->host.fn, params->host.userData};
      return api::cuGraphExecHostNodeSetParams(exec, node, &host);
    }
    case CU_GRAPH_NODE_TYPE_GRAPH:
      return api::cuGraphExecChildGraphNodeSetParams(exec, node, params->graph.graph);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return api::cuGraphExecEventWaitNodeSetEvent(exec, node, params->eventWait.event);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      log_unsupported("changing the event of an event record node");
      return CUDA_ERROR_NOT_SUPPORTED;
    default:
      return unsupported_type(params->type);
  }
}

CUresult cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                      const CUDA_HOST_NODE_PARAMS* params) {
  if (params == nullptr || params->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<HostCall> host_call = make_host_call(params->fn, params->userData);
  Call call(wire::Function::cuGraphExecHostNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  call.put(host_call->id);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS)
    change_exec(exec, [&](GraphContents& contents) { contents.host_calls.push_back(host_call); });
  return result;
}

CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child) {
  Call call(wire::Function::cuGraphExecChildGraphNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  call.put(bits(child));
  const CUresult result = call.wait();
  const GraphContents inherited = contents_of(bits(child));
  if (result == CUDA_SUCCESS) change_exec(exec, [&](GraphContents& contents) { contents.merge(inherited); });
  return result;
}

}  // namespace gpupool::guest::api
