// Adding nodes to graphs and changing what the nodes of an executable graph refer to in the client.
#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/graph_params.hpp"
#include "guest/runtime/manual/graph_place.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {
namespace {

CUresult add_empty(const Place& place) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddEmptyNode);
  place.put(call);
  return place.add(call);
}

CUresult add_kernel(const Place& place, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddKernelNode_v2);
  place.put(call);
  const CUresult result = put_kernel(call, params);
  return result == CUDA_SUCCESS ? place.add(call) : result;
}

CUresult add_copy(const Place& place, const CUDA_MEMCPY3D* params, CUcontext context) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddMemcpyNode);
  place.put(call);
  std::vector<std::shared_ptr<GraphPiece>> pieces;
  if (const CUresult result = put_copy(call, params, context, pieces); result != CUDA_SUCCESS) return result;
  const CUresult result = place.add(call);
  for (const auto& piece : pieces)
    if (result == CUDA_SUCCESS) keep_for_graph(bits(place.graph), piece);
  return result;
}

CUresult add_memset(const Place& place, const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddMemsetNode);
  place.put(call);
  const CUresult result = put_memset(call, params, context);
  return result == CUDA_SUCCESS ? place.add(call) : result;
}

CUresult add_host(const Place& place, CUhostFn function, void* data) {
  if (!place.valid() || function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<HostCall> host_call = make_host_call(function, data);
  Call call(wire::Function::cuGraphAddHostNode);
  place.put(call);
  call.put(host_call->id);
  const CUresult result = place.add(call);
  if (result != CUDA_SUCCESS) return result;
  keep_for_graph(bits(place.graph), host_call);
  return CUDA_SUCCESS;
}

// The node holds a copy of the graph, or the graph itself when that is moved.
CUresult add_child(const Place& place, CUgraph child, CUgraphChildGraphNodeOwnership ownership) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddChildGraphNode);
  place.put(call);
  call.put(bits(child));
  call.put(static_cast<u32>(ownership));
  const CUresult result = place.add(call);
  if (result != CUDA_SUCCESS) return result;
  GraphContents inherited;
  if (const CUresult failed = read_followed(bits(child), inherited); failed != CUDA_SUCCESS) return failed;
  keep_for_graph(bits(place.graph), inherited);
  // Its handle goes on naming it, but it is no longer the program's to destroy.
  if (ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE) {
    move_objects_inside(bits(child));
    return CUDA_SUCCESS;
  }
  if (!may_have_objects(bits(child))) return CUDA_SUCCESS;
  CUgraph copy = nullptr;
  const CUresult failed = api::cuGraphChildGraphNodeGetGraph(*place.out, &copy);
  return failed == CUDA_SUCCESS ? copy_objects(bits(child), bits(copy)) : failed;
}

// There is no external semaphore that a node could name.
CUresult no_semaphores() {
  log_unsupported("external semaphores");
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult add_generic_allocation(const Place& place, CUDA_MEM_ALLOC_NODE_PARAMS_v2& params) {
  CUDA_MEM_ALLOC_NODE_PARAMS same{};
  static_assert(sizeof same == sizeof params, "v2 has the fields of v1");
  std::memcpy(&same, &params, sizeof same);
  const CUresult result = add_allocation(place, same);
  if (result == CUDA_SUCCESS) params.dptr = same.dptr;
  return result;
}

// The memory of an allocation, the bodies of a condition: fixed when the node is added.
CUresult unchangeable(CUgraphNodeType type) {
  const bool exists = type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || type == CU_GRAPH_NODE_TYPE_MEM_FREE ||
                      type == CU_GRAPH_NODE_TYPE_CONDITIONAL || type == CU_GRAPH_NODE_TYPE_GRAPH;
  return exists ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

CUresult add_any(const Place& place, CUgraphNodeParams* params) {
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
      return add_child(place, params->graph.graph, params->graph.ownership);
    case CU_GRAPH_NODE_TYPE_EMPTY:
      return add_empty(place);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return add_event_node(place, false, params->eventWait.event);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return add_event_node(place, true, params->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
      return add_memory_operations(place, params->memOp.ctx, params->memOp.paramArray, params->memOp.count,
                                   params->memOp.flags);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
      return add_generic_allocation(place, params->alloc);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      return add_free(place, params->free.dptr);
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
      return add_conditional(place, params->conditional);
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
      return no_semaphores();
    default:
      return CUDA_ERROR_INVALID_VALUE;
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
  return add_child({out, graph, dependencies, count}, child, CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE);
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
  const CUresult result = call.wait();
  forget_accepted(0);
  drop_objects();
  return result;
}

CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: {
      const CUDA_KERNEL_NODE_PARAMS_v2 kernel = widen(params->kernel);
      return api::cuGraphKernelNodeSetParams_v2(node, &kernel);
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return api::cuGraphMemcpyNodeSetParams(node, &params->memcpy.copyParams);
    case CU_GRAPH_NODE_TYPE_MEMSET: {
      const CUDA_MEMSET_NODE_PARAMS fill = narrow(params->memset);
      return api::cuGraphMemsetNodeSetParams(node, &fill);
    }
    case CU_GRAPH_NODE_TYPE_HOST: {
      const CUDA_HOST_NODE_PARAMS host{params->host.fn, params->host.userData};
      return api::cuGraphHostNodeSetParams(node, &host);
    }
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return api::cuGraphEventWaitNodeSetEvent(node, params->eventWait.event);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return api::cuGraphEventRecordNodeSetEvent(node, params->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: {
      const CUDA_BATCH_MEM_OP_NODE_PARAMS steps{params->memOp.ctx, params->memOp.count,
                                                params->memOp.paramArray, params->memOp.flags};
      return api::cuGraphBatchMemOpNodeSetParams(node, &steps);
    }
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
      return no_semaphores();
    default:
      return unchangeable(params->type);
  }
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
      return api::cuGraphExecEventRecordNodeSetEvent(exec, node, params->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: {
      const CUDA_BATCH_MEM_OP_NODE_PARAMS steps{params->memOp.ctx, params->memOp.count,
                                                params->memOp.paramArray, params->memOp.flags};
      return api::cuGraphExecBatchMemOpNodeSetParams(exec, node, &steps);
    }
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
      return no_semaphores();
    default:
      return unchangeable(params->type);
  }
}

}  // namespace gpupool::guest::api
