// Conditional nodes: a value that kernels set and graphs that run by it.
#include "hostd/softgpu/api/graph_nodes.hpp"
#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

namespace {

// cuda.h, CUDA_CONDITIONAL_NODE_PARAMS: what a body may contain.
bool allowed_in_body(CUgraphNodeType type) {
  return type == CU_GRAPH_NODE_TYPE_KERNEL || type == CU_GRAPH_NODE_TYPE_EMPTY ||
         type == CU_GRAPH_NODE_TYPE_GRAPH || type == CU_GRAPH_NODE_TYPE_MEMSET ||
         type == CU_GRAPH_NODE_TYPE_MEMCPY || type == CU_GRAPH_NODE_TYPE_CONDITIONAL;
}

bool valid_size(CUgraphConditionalNodeType kind, u32 size) {
  if (kind == CU_GRAPH_COND_TYPE_IF) return size == 1 || size == 2;
  if (kind == CU_GRAPH_COND_TYPE_WHILE) return size == 1;
  return kind == CU_GRAPH_COND_TYPE_SWITCH && size != 0;
}

std::shared_ptr<Condition> condition_of(const Graph& graph, u64 handle) {
  for (const auto& condition : graph.conditions)
    if (condition->address == handle) return condition;
  fail(CUDA_ERROR_INVALID_VALUE);
}

}  // namespace

Condition::~Condition() {
  if (const auto allocation = memory_table().take(address)) release_device(*allocation);
}

void Condition::set(u32 value) const {
  std::atomic_ref<u32>(*reinterpret_cast<u32*>(address)).store(value);
}

u32 Condition::value() const {
  return std::atomic_ref<u32>(*reinterpret_cast<u32*>(address)).load();
}

ConditionalOperation::~ConditionalOperation() {
  for (const auto& body : bodies) forget_graph(body);
}

CUresult ConditionalOperation::run(Context& context) const {
  const auto over = [&] { return context.state() != CUDA_SUCCESS || context.destroyed.load(); };
  if (kind == CU_GRAPH_COND_TYPE_WHILE) {
    while (!over() && condition->value() != 0)
      if (const CUresult result = runs[0]->run(context); result != CUDA_SUCCESS) return result;
    return CUDA_SUCCESS;
  }
  const u32 value = condition->value();
  const u64 chosen = kind == CU_GRAPH_COND_TYPE_SWITCH ? value : (value != 0 ? 0 : 1);
  return chosen < runs.size() ? runs[chosen]->run(context) : CUDA_SUCCESS;
}

CUresult add_conditional(CUgraphNode* out, CUgraph handle, const CUgraphNode* dependencies, size_t count,
                         CUDA_CONDITIONAL_NODE_PARAMS& p) {
  return call([&] {
    constexpr u32 kMostBodies = 1u << 16;
    require(out != nullptr && valid_size(p.type, p.size) && p.size <= kMostBodies);
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    auto operation = std::make_shared<ConditionalOperation>();
    operation->condition = condition_of(*graph, p.handle);
    require(!operation->condition->used);
    operation->kind = p.type;
    auto after = nodes_of(*graph, dependencies, count);
    operation->condition->used = true;
    for (u32 i = 0; i < p.size; ++i) {
      operation->bodies.push_back(make_graph());
      operation->bodies.back()->child = true;
      operation->handles.push_back(operation->bodies.back()->handle);
    }
    p.phGraph_out = operation->handles.data();  // the node keeps it
    *out = add_node(graph, std::move(operation), std::move(after))->handle;
  });
}

void check_body(const Graph& body) {
  for (const auto& node : body.nodes) require(allowed_in_body(node->operation->type()));
}

GPUPOOL_CUDA CUresult cuGraphConditionalHandleCreate(CUgraphConditionalHandle* out, CUgraph handle,
                                                     CUcontext context, unsigned int value,
                                                     unsigned int flags) {
  return call([&] {
    require(out != nullptr && (flags & ~static_cast<u32>(CU_GRAPH_COND_ASSIGN_DEFAULT)) == 0);
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    auto condition = std::make_shared<Condition>();
    condition->address = allocate_device(*context_of(context), sizeof(u32), MemoryKind::graph).base;
    condition->initial = value;
    condition->assign_initial = (flags & CU_GRAPH_COND_ASSIGN_DEFAULT) != 0;
    condition->set(value);
    *out = condition->address;
    const std::lock_guard lock(graph_mutex());
    graph->conditions.push_back(std::move(condition));
  });
}

}  // namespace gpupool::softgpu
