// Graphs as data: nodes, order, clones, and how an executable graph runs.
#include "hostd/softgpu/api/graph.hpp"

#include <algorithm>
#include <unordered_map>

#include "hostd/softgpu/api/graph_memory.hpp"
#include "hostd/softgpu/api/graph_nodes.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

Registry<Graph, CUgraph>& graphs() {
  static auto* registry = new Registry<Graph, CUgraph>(9);
  return *registry;
}

Registry<GraphNode, CUgraphNode>& graph_nodes() {
  static auto* registry = new Registry<GraphNode, CUgraphNode>(10);
  return *registry;
}

Registry<GraphExec, CUgraphExec>& graph_execs() {
  static auto* registry = new Registry<GraphExec, CUgraphExec>(11);
  return *registry;
}

Registry<UserObject, CUuserObject>& user_objects() {
  static auto* registry = new Registry<UserObject, CUuserObject>(12);
  return *registry;
}

std::mutex& graph_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

namespace {

void release_all(std::vector<std::shared_ptr<UserObject>>& objects) {
  for (const auto& object : objects) {
    if (object->references.fetch_sub(1) != 1) continue;
    user_objects().take(object->handle);
    object->destroy(object->data);
  }
  objects.clear();
}

}  // namespace

Graph::~Graph() {
  release_all(user_objects);
}
GraphExec::~GraphExec() {
  release_all(user_objects);
}

std::shared_ptr<Graph> make_graph() {
  auto graph = std::make_shared<Graph>();
  graphs().add(graph);
  return graph;
}

std::shared_ptr<GraphNode> add_node(const std::shared_ptr<Graph>& graph, OperationPtr operation,
                                    std::vector<std::shared_ptr<GraphNode>> dependencies) {
  auto node = std::make_shared<GraphNode>();
  node->graph = graph;
  node->operation = std::move(operation);
  node->dependencies = std::move(dependencies);
  graph_nodes().add(node);
  graph->nodes.push_back(node);
  return node;
}

void check_edge(const GraphNode& from, const CUgraphEdgeData& edge) {
  require(edge.to_port == 0 && edge.from_port <= CU_GRAPH_KERNEL_NODE_PORT_LAUNCH_ORDER &&
          edge.type <= CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC);
  require(from.operation->type() == CU_GRAPH_NODE_TYPE_KERNEL);
}

std::shared_ptr<GraphNode> node_of(CUgraphNode handle) {
  return graph_nodes().get(handle, CUDA_ERROR_INVALID_VALUE);
}

std::vector<std::shared_ptr<GraphNode>> nodes_of(const Graph& graph, const CUgraphNode* handles, u64 count) {
  require(count == 0 || handles != nullptr);
  std::vector<std::shared_ptr<GraphNode>> result;
  for (u64 i = 0; i < count; ++i) {
    auto node = node_of(handles[i]);
    require(node->graph.lock().get() == &graph);
    require(std::find(result.begin(), result.end(), node) == result.end());
    result.push_back(std::move(node));
  }
  return result;
}

std::vector<std::shared_ptr<GraphNode>> sorted(const Graph& graph) {
  std::unordered_map<const GraphNode*, u64> missing;
  std::unordered_map<const GraphNode*, std::vector<std::shared_ptr<GraphNode>>> dependents;
  for (const auto& node : graph.nodes) {
    missing[node.get()] = node->dependencies.size();
    for (const auto& dependency : node->dependencies) dependents[dependency.get()].push_back(node);
  }
  std::vector<std::shared_ptr<GraphNode>> order;
  for (const auto& node : graph.nodes)
    if (node->dependencies.empty()) order.push_back(node);
  for (u64 i = 0; i < order.size(); ++i)
    for (const auto& dependent : dependents[order[i].get()])
      if (--missing[dependent.get()] == 0) order.push_back(dependent);
  require(order.size() == graph.nodes.size());
  return order;
}

namespace {

std::shared_ptr<GraphOperation> operation_of(const Graph& graph) {
  auto operation = std::make_shared<GraphOperation>();
  operation->steps = steps_of(graph);
  operation->conditions = graph.conditions;
  return operation;
}

// What an executable graph runs for a node: graphs inside nodes are taken as they are now.
OperationPtr step_operation(const GraphNode& node) {
  if (const auto* child = dynamic_cast<const GraphOperation*>(node.operation.get()))
    return child->graph == nullptr ? node.operation : operation_of(*child->graph);
  const auto* conditional = dynamic_cast<const ConditionalOperation*>(node.operation.get());
  if (conditional == nullptr) return node.operation;
  auto step = std::make_shared<ConditionalOperation>();
  step->condition = conditional->condition;
  step->kind = conditional->kind;
  for (const auto& body : conditional->bodies) {
    check_body(*body);
    step->runs.push_back(operation_of(*body));
  }
  return step;
}

}  // namespace

std::shared_ptr<const std::vector<GraphStep>> steps_of(const Graph& graph) {
  auto steps = std::make_shared<std::vector<GraphStep>>();
  for (const auto& node : sorted(graph)) steps->push_back({node->handle, step_operation(*node), true});
  return steps;
}

std::shared_ptr<const std::vector<GraphStep>> steps_of_launch(
    const std::shared_ptr<const std::vector<GraphStep>>& steps) {
  std::shared_ptr<std::vector<GraphStep>> changed;
  for (u64 i = 0; i < steps->size(); ++i) {
    const OperationPtr& before = (*steps)[i].operation;
    OperationPtr after = before;
    if (const auto* event = dynamic_cast<const EventNodeOperation*>(before.get())) {
      after = event->for_launch();
    } else if (const auto* child = dynamic_cast<const GraphOperation*>(before.get())) {
      const auto inner = steps_of_launch(child->steps);
      if (inner != child->steps) {
        auto copy = std::make_shared<GraphOperation>();
        copy->steps = inner;
        copy->conditions = child->conditions;
        after = std::move(copy);
      }
    }
    if (after == before) continue;
    if (!changed) changed = std::make_shared<std::vector<GraphStep>>(*steps);
    (*changed)[i].operation = std::move(after);
  }
  return changed ? changed : steps;
}

namespace {

// Graphs inside nodes are a node's own, so a copy of the node has copies of them.
OperationPtr clone_operation(const OperationPtr& operation) {
  if (const auto* child = dynamic_cast<const GraphOperation*>(operation.get()); child && child->graph) {
    auto copy = std::make_shared<GraphOperation>();
    copy->graph = clone_graph(*child->graph);
    copy->graph->child = true;
    return copy;
  }
  const auto* conditional = dynamic_cast<const ConditionalOperation*>(operation.get());
  if (conditional == nullptr) return operation;
  auto copy = std::make_shared<ConditionalOperation>();
  copy->condition = conditional->condition;
  copy->kind = conditional->kind;
  for (const auto& body : conditional->bodies) {
    copy->bodies.push_back(clone_graph(*body));
    copy->bodies.back()->child = true;
    copy->handles.push_back(copy->bodies.back()->handle);
  }
  return copy;
}

}  // namespace

std::shared_ptr<Graph> clone_graph(const Graph& graph) {
  require(!has_memory_nodes(graph), CUDA_ERROR_NOT_SUPPORTED);
  auto clone = make_graph();
  std::unordered_map<const GraphNode*, std::shared_ptr<GraphNode>> made;
  for (const auto& node : graph.nodes) {
    const auto copy = add_node(clone, clone_operation(node->operation), {});
    copy->original = node->handle;
    made[node.get()] = copy;
  }
  for (const auto& node : graph.nodes)
    for (const auto& dependency : node->dependencies) {
      made[node.get()]->dependencies.push_back(made[dependency.get()]);
      if (const auto edge = node->edges.find(dependency.get()); edge != node->edges.end())
        made[node.get()]->edges[made[dependency.get()].get()] = edge->second;
    }
  clone->conditions = graph.conditions;
  clone->user_objects = graph.user_objects;
  for (const auto& object : clone->user_objects) object->references.fetch_add(1);
  return clone;
}

void forget_graph(const std::shared_ptr<Graph>& graph) {
  graphs().take(graph->handle);
  for (const auto& node : graph->nodes) graph_nodes().take(node->handle);
}

GraphOperation::~GraphOperation() {
  if (graph) forget_graph(graph);
}

CUresult GraphOperation::run(Context& context) const {
  for (const auto& condition : conditions)
    if (condition->assign_initial) condition->set(condition->initial);
  for (const GraphStep& step : *steps) {
    if (!step.enabled) continue;
    const CUresult result = step.operation->run(context);
    if (result != CUDA_SUCCESS) return result;
    if (context.state() != CUDA_SUCCESS || context.destroyed.load()) return CUDA_SUCCESS;
  }
  return CUDA_SUCCESS;
}

}  // namespace gpupool::softgpu
