// Nodes: adding them, reading and changing what they do.
#include "hostd/softgpu/api/graph_nodes.hpp"

#include <algorithm>
#include <functional>

#include "hostd/softgpu/api/graph_memory.hpp"
#include "hostd/softgpu/api/launch.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

OperationPtr make_kernel_operation(const CUDA_KERNEL_NODE_PARAMS& p) {
  std::shared_ptr<Function> function;
  if (p.func != nullptr)
    function = resolve_function(p.func);
  else
    function = function_of(kernels().get(p.kern, CUDA_ERROR_INVALID_VALUE), context_of(p.ctx));
  const LaunchShape shape{
      {p.gridDimX, p.gridDimY, p.gridDimZ}, {p.blockDimX, p.blockDimY, p.blockDimZ}, p.sharedMemBytes, false};
  return make_launch(std::move(function), shape, p.kernelParams, p.extra);
}

OperationPtr make_host_operation(const CUDA_HOST_NODE_PARAMS& p) {
  require(p.fn != nullptr);
  auto operation = std::make_shared<HostOperation>();
  operation->parameters = p;
  return operation;
}

OperationPtr make_event_operation(CUevent handle, bool record) {
  auto operation = std::make_shared<EventNodeOperation>();
  operation->event = events().get(handle);
  operation->record = record;
  return operation;
}

OperationPtr make_child_operation(CUgraph handle) {
  const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
  auto operation = std::make_shared<GraphOperation>();
  const std::lock_guard lock(graph_mutex());
  operation->graph = clone_graph(*graph);
  operation->graph->child = true;
  return operation;
}

namespace {

// The graph itself goes into the node, and its handle goes on naming it.
OperationPtr make_moved_child(CUgraph handle) {
  auto operation = std::make_shared<GraphOperation>();
  operation->graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
  const std::lock_guard lock(graph_mutex());
  require(!operation->graph->child);
  operation->graph->child = true;
  return operation;
}

}  // namespace

namespace {

CUresult set(CUgraphNode handle, const std::function<OperationPtr()>& make) {
  return call([&] {
    const auto node = node_of(handle);
    OperationPtr operation = make();
    const std::lock_guard lock(graph_mutex());
    require(node->operation->type() == operation->type());
    node->operation = std::move(operation);
  });
}

OperationPtr make_generic(const CUgraphNodeParams& p) {
  switch (p.type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: {
      const CUDA_KERNEL_NODE_PARAMS_v3& k = p.kernel;
      return make_kernel_operation({k.func, k.gridDimX, k.gridDimY, k.gridDimZ, k.blockDimX, k.blockDimY,
                                    k.blockDimZ, k.sharedMemBytes, k.kernelParams, k.extra, k.kern, k.ctx});
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return make_copy(p.memcpy.copyParams);
    case CU_GRAPH_NODE_TYPE_MEMSET:
      return make_memset({p.memset.dst, p.memset.pitch, p.memset.value, p.memset.elementSize, p.memset.width,
                          p.memset.height});
    case CU_GRAPH_NODE_TYPE_HOST:
      return make_host_operation({p.host.fn, p.host.userData});
    case CU_GRAPH_NODE_TYPE_GRAPH:
      return p.graph.ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE ? make_moved_child(p.graph.graph)
                                                                      : make_child_operation(p.graph.graph);
    case CU_GRAPH_NODE_TYPE_EMPTY:
      return std::make_shared<EmptyOperation>();
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return make_event_operation(p.eventWait.event, false);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return make_event_operation(p.eventRecord.event, true);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      return make_free(p.free.dptr);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
      return make_value_operation(p.memOp.paramArray, p.memOp.count);
    default:
      fail(CUDA_ERROR_NOT_SUPPORTED);
  }
}

}  // namespace

CUresult add_node_of(CUgraphNode* out, CUgraph handle, const CUgraphNode* dependencies, size_t count,
                     const std::function<OperationPtr()>& make) {
  return call([&] {
    require(out != nullptr);
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    OperationPtr operation = make();
    const std::lock_guard lock(graph_mutex());
    *out = add_node(graph, std::move(operation), nodes_of(*graph, dependencies, count))->handle;
  });
}

OperationPtr make_operation(const CUgraphNodeParams* parameters) {
  require(parameters != nullptr);
  return make_generic(*parameters);
}

GPUPOOL_CUDA CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph graph,
                                              const CUgraphNode* dependencies, size_t count,
                                              const CUDA_KERNEL_NODE_PARAMS* p) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_kernel_operation(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS* out) {
  return call([&] {
    require(out != nullptr);
    const auto operation = operation_of<KernelOperation>(node);
    const LaunchShape& shape = operation->shape;
    // The pointers lead into the operation, which the node keeps.
    *out = {operation->function->handle,
            shape.grid.x,
            shape.grid.y,
            shape.grid.z,
            shape.block.x,
            shape.block.y,
            shape.block.z,
            shape.shared_bytes,
            const_cast<void**>(operation->pointers.data()),
            nullptr,
            nullptr,
            operation->function->context->handle};
  });
}

GPUPOOL_CUDA CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* p) {
  return set(node, [&] { return make_kernel_operation(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphKernelNodeGetAttribute(CUgraphNode node, CUkernelNodeAttrID id,
                                                    CUkernelNodeAttrValue* out) {
  return call([&] {
    require(out != nullptr);
    *out = CUkernelNodeAttrValue{};
    for (const CUlaunchAttribute& attribute : operation_of<KernelOperation>(node)->attributes)
      if (attribute.id == id) *out = attribute.value;
  });
}

GPUPOOL_CUDA CUresult cuGraphKernelNodeSetAttribute(CUgraphNode handle, CUkernelNodeAttrID id,
                                                    const CUkernelNodeAttrValue* value) {
  return set(handle, [&] {
    CUlaunchAttribute attribute{};
    attribute.id = id;
    attribute.value = *non_null(value);
    auto operation = std::make_shared<KernelOperation>(*operation_of<KernelOperation>(handle));
    read_attributes({&attribute, 1}, operation->shape);
    std::erase_if(operation->attributes, [&](const CUlaunchAttribute& old) { return old.id == id; });
    operation->attributes.push_back(attribute);
    operation->point_at_own_parameters();
    return operation;
  });
}

GPUPOOL_CUDA CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode to, CUgraphNode from) {
  return set(to, [&] {
    auto operation = std::make_shared<KernelOperation>(*operation_of<KernelOperation>(to));
    operation->attributes = operation_of<KernelOperation>(from)->attributes;
    read_attributes(operation->attributes, operation->shape);
    operation->point_at_own_parameters();
    return operation;
  });
}

GPUPOOL_CUDA CUresult cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                           size_t count, const CUDA_MEMCPY3D* p, CUcontext) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_copy(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* out) {
  return call([&] {
    require(out != nullptr);
    *out = operation_of<CopyOperation>(node)->parameters;
  });
}

GPUPOOL_CUDA CUresult cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D* p) {
  return set(node, [&] { return make_copy(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphAddMemsetNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                           size_t count, const CUDA_MEMSET_NODE_PARAMS* p, CUcontext) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_memset(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS* out) {
  return call([&] {
    require(out != nullptr);
    *out = operation_of<MemsetOperation>(node)->parameters;
  });
}

GPUPOOL_CUDA CUresult cuGraphMemsetNodeSetParams(CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS* p) {
  return set(node, [&] { return make_memset(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphAddHostNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                         size_t count, const CUDA_HOST_NODE_PARAMS* p) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_host_operation(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS* out) {
  return call([&] {
    require(out != nullptr);
    *out = operation_of<HostOperation>(node)->parameters;
  });
}

GPUPOOL_CUDA CUresult cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS* p) {
  return set(node, [&] { return make_host_operation(*non_null(p)); });
}

GPUPOOL_CUDA CUresult cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph graph,
                                               const CUgraphNode* dependencies, size_t count, CUgraph child) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_child_operation(child); });
}

GPUPOOL_CUDA CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph* out) {
  return call([&] {
    require(out != nullptr);
    const auto operation = operation_of<GraphOperation>(node);
    require(operation->graph != nullptr, CUDA_ERROR_NOT_SUPPORTED);  // a captured launch keeps only its steps
    *out = operation->graph->handle;
  });
}

GPUPOOL_CUDA CUresult cuGraphAddEmptyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                          size_t count) {
  return add_node_of(out, graph, dependencies, count, [] { return std::make_shared<EmptyOperation>(); });
}

GPUPOOL_CUDA CUresult cuGraphAddEventRecordNode(CUgraphNode* out, CUgraph graph,
                                                const CUgraphNode* dependencies, size_t count,
                                                CUevent event) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_event_operation(event, true); });
}

GPUPOOL_CUDA CUresult cuGraphAddEventWaitNode(CUgraphNode* out, CUgraph graph,
                                              const CUgraphNode* dependencies, size_t count, CUevent event) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_event_operation(event, false); });
}

GPUPOOL_CUDA CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent* out) {
  return call([&] {
    require(out != nullptr);
    const auto operation = operation_of<EventNodeOperation>(node);
    require(operation->record);
    *out = operation->event->handle;
  });
}

GPUPOOL_CUDA CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode node, CUevent* out) {
  return call([&] {
    require(out != nullptr);
    const auto operation = operation_of<EventNodeOperation>(node);
    require(!operation->record);
    *out = operation->event->handle;
  });
}

GPUPOOL_CUDA CUresult cuGraphEventRecordNodeSetEvent(CUgraphNode node, CUevent event) {
  return set(node, [&] { return make_event_operation(event, true); });
}

GPUPOOL_CUDA CUresult cuGraphEventWaitNodeSetEvent(CUgraphNode node, CUevent event) {
  return set(node, [&] { return make_event_operation(event, false); });
}

GPUPOOL_CUDA CUresult cuGraphAddBatchMemOpNode(CUgraphNode* out, CUgraph graph,
                                               const CUgraphNode* dependencies, size_t count,
                                               const CUDA_BATCH_MEM_OP_NODE_PARAMS* p) {
  return add_node_of(out, graph, dependencies, count,
                     [&] { return make_value_operation(non_null(p)->paramArray, p->count); });
}

GPUPOOL_CUDA CUresult cuGraphBatchMemOpNodeGetParams(CUgraphNode node, CUDA_BATCH_MEM_OP_NODE_PARAMS* out) {
  return call([&] {
    require(out != nullptr);
    const auto operation = operation_of<ValueOperation>(node);
    *out = CUDA_BATCH_MEM_OP_NODE_PARAMS{};
    out->count = static_cast<u32>(operation->steps.size());
    out->paramArray = const_cast<CUstreamBatchMemOpParams*>(operation->steps.data());  // the node keeps it
  });
}

GPUPOOL_CUDA CUresult cuGraphBatchMemOpNodeSetParams(CUgraphNode node,
                                                     const CUDA_BATCH_MEM_OP_NODE_PARAMS* p) {
  return set(node, [&] { return make_value_operation(non_null(p)->paramArray, p->count); });
}

GPUPOOL_CUDA CUresult cuGraphAddNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                     size_t count, CUgraphNodeParams* p) {
  if (p != nullptr && p->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
    return add_conditional(out, graph, dependencies, count, p->conditional);
  return add_node_of(out, graph, dependencies, count, [&] { return make_operation(p); });
}

GPUPOOL_CUDA CUresult cuGraphAddNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                        const CUgraphEdgeData* edges, size_t count, CUgraphNodeParams* p) {
  if (edges == nullptr) return cuGraphAddNode(out, graph, dependencies, count, p);
  const CUresult result = cuGraphAddNode(out, graph, nullptr, 0, p);
  if (result != CUDA_SUCCESS) return result;
  const std::vector<CUgraphNode> to(count, *out);
  return cuGraphAddDependencies_v2(graph, dependencies, to.data(), edges, count);
}

GPUPOOL_CUDA CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams* p) {
  return set(node, [&] { return make_operation(p); });
}

}  // namespace gpupool::softgpu
