// Graphs in the worker: reading the lists that most of their messages carry, and forgetting handles with the
// objects they name.
#pragma once

#include <vector>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

inline constexpr u64 kMaxNodes = 1u << 20;  // in one message

// Nodes to depend on, with or without edge data: an array of handles, then an array of CUgraphEdgeData that
// is as long or empty.
struct Dependencies {
  std::vector<wire::Handle> handles;
  std::vector<CUgraphEdgeData> edges;
  std::vector<CUgraphNode> nodes;

  static Dependencies read(Request& request);
  // Looks the nodes up. False when one is unknown.
  bool resolve(Worker& worker);
  [[nodiscard]] CUgraphNode* data() { return nodes.empty() ? nullptr : nodes.data(); }
  [[nodiscard]] CUgraphEdgeData* edge_data() { return edges.empty() ? nullptr : edges.data(); }
};

// The handles that name the graph's nodes, its child graphs and their nodes, at this moment.
struct GraphNames {
  std::vector<wire::Handle> nodes;
  std::vector<wire::Handle> graphs;
  std::vector<CUgraphNode> conditionals;
  void add(Worker& worker, CUgraph graph);
  void add_node(Worker& worker, CUgraphNode node);
  // Forgets them, after the driver has destroyed what they named.
  void drop(Worker& worker);
};

// The nodes of a graph.
CUresult nodes_of(Worker& worker, CUgraph graph, std::vector<CUgraphNode>& nodes);

// The graphs that a node holds: a child graph, or the bodies of a condition as far as the driver has told.
std::vector<CUgraph> graphs_inside(Worker& worker, CUgraphNode node);

}  // namespace gpupool::worker
