// Graphs: nodes with dependencies, and their executable form, an ordered list of operations.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

struct Graph;

struct GraphNode {
  CUgraphNode handle = nullptr;
  std::weak_ptr<Graph> graph;
  OperationPtr operation;
  std::vector<std::shared_ptr<GraphNode>> dependencies;
  std::map<const GraphNode*, CUgraphEdgeData> edges;  // of dependencies that are not plain ones
  CUgraphNode original = nullptr;                     // in a clone: the node it was made from
};

// Counted by the program; calls `destroy` when nobody holds it any more.
struct UserObject {
  CUuserObject handle = nullptr;
  void* data = nullptr;
  CUhostFn destroy = nullptr;
  std::atomic<u32> references{0};
};

// The value that a conditional node looks at: four bytes of device memory, whose address is its handle.
struct Condition {
  u64 address = 0;
  u32 initial = 0;
  bool assign_initial = false;  // at every launch
  bool used = false;            // by a node: a handle belongs to one

  Condition() = default;
  Condition(const Condition&) = delete;
  Condition& operator=(const Condition&) = delete;
  ~Condition();
  void set(u32 value) const;
  [[nodiscard]] u32 value() const;
};

struct Graph {
  CUgraph handle = nullptr;
  std::vector<std::shared_ptr<Condition>> conditions;
  std::vector<std::shared_ptr<GraphNode>> nodes;          // in the order they were added
  std::vector<std::shared_ptr<UserObject>> user_objects;  // one entry a reference
  bool child = false;  // belongs to a child-graph node: not the program's to destroy

  ~Graph();
};

struct GraphStep {
  CUgraphNode node = nullptr;
  OperationPtr operation;
  bool enabled = true;
};

struct GraphExec {
  CUgraphExec handle = nullptr;
  u64 flags = 0;
  std::shared_ptr<const std::vector<GraphStep>> steps;  // replaced as a whole, guarded by graph_mutex()
  std::vector<std::shared_ptr<Condition>> conditions;
  std::vector<std::shared_ptr<UserObject>> user_objects;
  Fence last;  // an executable graph never runs beside itself: each launch waits for the one before

  ~GraphExec();
};

// A whole graph as one operation: a launch, or a child node.
class GraphOperation final : public Operation {
 public:
  std::shared_ptr<const std::vector<GraphStep>> steps;
  std::shared_ptr<Graph> graph;                        // of a child node: ours alone
  std::vector<std::shared_ptr<Condition>> conditions;  // that get their first value when it runs

  GraphOperation() = default;
  GraphOperation(const GraphOperation&) = delete;
  GraphOperation& operator=(const GraphOperation&) = delete;
  ~GraphOperation() override;
  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_GRAPH; }
  CUresult run(Context& context) const override;
};

// Runs one of its graphs, or one again and again, as its condition says.
class ConditionalOperation final : public Operation {
 public:
  std::shared_ptr<Condition> condition;
  CUgraphConditionalNodeType kind{};
  std::vector<std::shared_ptr<Graph>> bodies;               // of a node: ours alone
  std::vector<CUgraph> handles;                             // of `bodies`, as the node's parameters show them
  std::vector<std::shared_ptr<const GraphOperation>> runs;  // of a step: what the bodies were then

  ConditionalOperation() = default;
  ConditionalOperation(const ConditionalOperation&) = delete;
  ConditionalOperation& operator=(const ConditionalOperation&) = delete;
  ~ConditionalOperation() override;
  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_CONDITIONAL; }
  CUresult run(Context& context) const override;
};

Registry<Graph, CUgraph>& graphs();
Registry<GraphNode, CUgraphNode>& graph_nodes();
Registry<GraphExec, CUgraphExec>& graph_execs();
Registry<UserObject, CUuserObject>& user_objects();

// Guards every graph, every capture and what streams and events know of captures. Both are rare: one lock for
// all.
std::mutex& graph_mutex();

// These expect graph_mutex() to be held.
std::shared_ptr<Graph> make_graph();
std::shared_ptr<GraphNode> add_node(const std::shared_ptr<Graph>& graph, OperationPtr operation,
                                    std::vector<std::shared_ptr<GraphNode>> dependencies);
// Nodes by handle; Error INVALID_VALUE when one is not of this graph.
std::vector<std::shared_ptr<GraphNode>> nodes_of(const Graph& graph, const CUgraphNode* handles, u64 count);
std::shared_ptr<GraphNode> node_of(CUgraphNode handle);
// Error INVALID_VALUE unless an edge of this kind can begin at the node: programmatic ones begin at kernels.
void check_edge(const GraphNode& from, const CUgraphEdgeData& edge);
// Dependencies before dependents. Error INVALID_VALUE for a cycle.
std::vector<std::shared_ptr<GraphNode>> sorted(const Graph& graph);
std::shared_ptr<const std::vector<GraphStep>> steps_of(const Graph& graph);
// The steps with their events as one launch means them: what it records is pending from the launch on, and
// what it waits for is the recording that is newest then.
std::shared_ptr<const std::vector<GraphStep>> steps_of_launch(
    const std::shared_ptr<const std::vector<GraphStep>>& steps);
std::shared_ptr<Graph> clone_graph(const Graph& graph);

// Removes the handles of a graph and of its nodes. Needs no lock.
void forget_graph(const std::shared_ptr<Graph>& graph);

}  // namespace gpupool::softgpu
