// Graphs: making, destroying, walking, dependencies, user objects.
#include <algorithm>
#include <fstream>

#include "hostd/softgpu/api/graph_memory.hpp"

namespace gpupool::softgpu {

namespace {

// Writes as many nodes as fit and says how many there are, in the driver's manner: without an array only the
// number; places beyond the last node are cleared.
void write_nodes(const std::vector<std::shared_ptr<GraphNode>>& nodes, CUgraphNode* out, size_t* count) {
  require(count != nullptr);
  if (out == nullptr) {
    *count = nodes.size();
    return;
  }
  for (size_t i = 0; i < *count; ++i) out[i] = i < nodes.size() ? nodes[i]->handle : nullptr;
  *count = std::min(*count, nodes.size());
}

bool is_plain(const CUgraphEdgeData& edge) {
  return edge.from_port == 0 && edge.to_port == 0 && edge.type == CU_GRAPH_DEPENDENCY_TYPE_DEFAULT;
}

CUgraphEdgeData edge_of(const GraphNode& from, const GraphNode& to) {
  const auto found = to.edges.find(&from);
  return found == to.edges.end() ? CUgraphEdgeData{} : found->second;
}

// Who does not ask for an edge's data must not be given an edge that has some (cuda.h).
void write_edge(const CUgraphEdgeData& edge, CUgraphEdgeData* out, size_t at) {
  if (out != nullptr)
    out[at] = edge;
  else
    require(is_plain(edge), CUDA_ERROR_LOSSY_QUERY);
}

CUresult get_edges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* edges,
                   size_t* count) {
  return call([&] {
    require(count != nullptr && (from == nullptr) == (to == nullptr));
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    size_t number = 0;
    for (const auto& node : graph->nodes)
      for (const auto& dependency : node->dependencies) {
        if (from != nullptr && number < *count) {
          from[number] = dependency->handle;
          to[number] = node->handle;
          write_edge(edge_of(*dependency, *node), edges, number);
        }
        ++number;
      }
    for (size_t i = number; from != nullptr && i < *count; ++i) from[i] = to[i] = nullptr;
    for (size_t i = number; from != nullptr && edges != nullptr && i < *count; ++i) edges[i] = {};
    *count = from == nullptr ? number : std::min(*count, number);
  });
}

CUresult get_dependencies(CUgraphNode handle, CUgraphNode* out, CUgraphEdgeData* edges, size_t* count) {
  return call([&] {
    const auto node = node_of(handle);
    const std::lock_guard lock(graph_mutex());
    write_nodes(node->dependencies, out, count);
    for (size_t i = 0; out != nullptr && i < *count; ++i)
      write_edge(edge_of(*node->dependencies[i], *node), edges, i);
  });
}

CUresult get_dependents(CUgraphNode handle, CUgraphNode* out, CUgraphEdgeData* edges, size_t* count) {
  return call([&] {
    const auto node = node_of(handle);
    const auto graph = node->graph.lock();
    require(graph != nullptr);
    const std::lock_guard lock(graph_mutex());
    std::vector<std::shared_ptr<GraphNode>> dependents;
    for (const auto& other : graph->nodes)
      if (std::find(other->dependencies.begin(), other->dependencies.end(), node) !=
          other->dependencies.end())
        dependents.push_back(other);
    write_nodes(dependents, out, count);
    for (size_t i = 0; out != nullptr && i < *count; ++i)
      write_edge(edge_of(*node, *dependents[i]), edges, i);
  });
}

CUresult add_dependencies(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to,
                          const CUgraphEdgeData* edges, size_t count) {
  return call([&] {
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    require(count == 0 || (from != nullptr && to != nullptr));
    const std::lock_guard lock(graph_mutex());
    for (size_t i = 0; i < count; ++i) {
      const auto first = nodes_of(*graph, from + i, 1)[0], second = nodes_of(*graph, to + i, 1)[0];
      require(first != second);
      auto& list = second->dependencies;
      require(std::find(list.begin(), list.end(), first) == list.end());
      if (edges != nullptr && !is_plain(edges[i])) {
        check_edge(*first, edges[i]);
        second->edges[first.get()] = edges[i];
      }
      list.push_back(first);
    }
  });
}

CUresult remove_dependencies(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to, size_t count) {
  return call([&] {
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    require(count == 0 || (from != nullptr && to != nullptr));
    const std::lock_guard lock(graph_mutex());
    for (size_t i = 0; i < count; ++i) {
      const auto first = nodes_of(*graph, from + i, 1)[0], second = nodes_of(*graph, to + i, 1)[0];
      require(std::erase(second->dependencies, first) != 0);
      second->edges.erase(first.get());
    }
  });
}

std::shared_ptr<UserObject> release(CUuserObject handle, u32 count) {
  const auto object = user_objects().get(handle, CUDA_ERROR_INVALID_VALUE);
  require(count != 0 && count <= object->references.load());
  if (object->references.fetch_sub(count) == count) {
    user_objects().take(handle);
    object->destroy(object->data);
  }
  return object;
}

const char* type_name(CUgraphNodeType type) {
  switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      return "kernel";
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return "memcpy";
    case CU_GRAPH_NODE_TYPE_MEMSET:
      return "memset";
    case CU_GRAPH_NODE_TYPE_HOST:
      return "host";
    case CU_GRAPH_NODE_TYPE_GRAPH:
      return "graph";
    case CU_GRAPH_NODE_TYPE_EMPTY:
      return "empty";
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return "wait event";
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return "record event";
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
      return "memory operations";
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
      return "allocate";
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      return "free";
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
      return "conditional";
    default:
      return "other";
  }
}

}  // namespace

GPUPOOL_CUDA CUresult cuGraphCreate(CUgraph* out, unsigned int flags) {
  return call([&] {
    require(out != nullptr && flags == 0);
    const std::lock_guard lock(graph_mutex());
    *out = make_graph()->handle;
  });
}

GPUPOOL_CUDA CUresult cuGraphDestroy(CUgraph handle) {
  return call([&] {
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    require(!graph->child);
    forget_graph(graph);
  });
}

GPUPOOL_CUDA CUresult cuGraphClone(CUgraph* out, CUgraph original) {
  return call([&] {
    require(out != nullptr);
    const auto graph = graphs().get(original, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    *out = clone_graph(*graph)->handle;
  });
}

GPUPOOL_CUDA CUresult cuGraphNodeFindInClone(CUgraphNode* out, CUgraphNode original, CUgraph clone) {
  return call([&] {
    require(out != nullptr);
    const auto graph = graphs().get(clone, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    for (const auto& node : graph->nodes)
      if (node->original == original) {
        *out = node->handle;
        return;
      }
    fail(CUDA_ERROR_INVALID_VALUE);
  });
}

GPUPOOL_CUDA CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* type) {
  return call([&] {
    require(type != nullptr);
    const auto node = node_of(handle);
    const std::lock_guard lock(graph_mutex());
    *type = node->operation->type();
  });
}

GPUPOOL_CUDA CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* out, size_t* count) {
  return call([&] {
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    write_nodes(graph->nodes, out, count);
  });
}

GPUPOOL_CUDA CUresult cuGraphGetRootNodes(CUgraph handle, CUgraphNode* out, size_t* count) {
  return call([&] {
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    std::vector<std::shared_ptr<GraphNode>> roots;
    for (const auto& node : graph->nodes)
      if (node->dependencies.empty()) roots.push_back(node);
    write_nodes(roots, out, count);
  });
}

GPUPOOL_CUDA CUresult cuGraphGetEdges(CUgraph graph, CUgraphNode* from, CUgraphNode* to, size_t* count) {
  return get_edges(graph, from, to, nullptr, count);
}

GPUPOOL_CUDA CUresult cuGraphGetEdges_v2(CUgraph graph, CUgraphNode* from, CUgraphNode* to,
                                         CUgraphEdgeData* edges, size_t* count) {
  return get_edges(graph, from, to, edges, count);
}

GPUPOOL_CUDA CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode* out, size_t* count) {
  return get_dependencies(node, out, nullptr, count);
}

GPUPOOL_CUDA CUresult cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode* out,
                                                    CUgraphEdgeData* edges, size_t* count) {
  return get_dependencies(node, out, edges, count);
}

GPUPOOL_CUDA CUresult cuGraphNodeGetDependentNodes(CUgraphNode node, CUgraphNode* out, size_t* count) {
  return get_dependents(node, out, nullptr, count);
}

GPUPOOL_CUDA CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode node, CUgraphNode* out,
                                                      CUgraphEdgeData* edges, size_t* count) {
  return get_dependents(node, out, edges, count);
}

GPUPOOL_CUDA CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                             size_t count) {
  return add_dependencies(graph, from, to, nullptr, count);
}

GPUPOOL_CUDA CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                                const CUgraphEdgeData* edges, size_t count) {
  return add_dependencies(graph, from, to, edges, count);
}

GPUPOOL_CUDA CUresult cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                                size_t count) {
  return remove_dependencies(graph, from, to, count);
}

GPUPOOL_CUDA CUresult cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode* from,
                                                   const CUgraphNode* to, const CUgraphEdgeData* edges,
                                                   size_t count) {
  (void)edges;  // plain edges are the only ones there are
  return remove_dependencies(graph, from, to, count);
}

GPUPOOL_CUDA CUresult cuGraphDestroyNode(CUgraphNode handle) {
  return call([&] {
    const auto node = node_of(handle);
    const auto graph = node->graph.lock();
    require(graph != nullptr);
    const std::lock_guard lock(graph_mutex());
    require(!has_memory_nodes(*graph), CUDA_ERROR_NOT_SUPPORTED);
    graph_nodes().take(handle);
    std::erase(graph->nodes, node);
    for (const auto& other : graph->nodes) {
      std::erase(other->dependencies, node);
      other->edges.erase(node.get());
    }
  });
}

GPUPOOL_CUDA CUresult cuGraphDebugDotPrint(CUgraph handle, const char* path, unsigned int) {
  return call([&] {
    require(path != nullptr);
    const auto graph = graphs().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    std::ofstream file(path);
    file << "digraph {\n";
    for (const auto& node : graph->nodes) {
      const u64 name = reinterpret_cast<u64>(node->handle);
      file << "  n" << name << " [label=\"" << type_name(node->operation->type()) << "\"];\n";
      for (const auto& dependency : node->dependencies)
        file << "  n" << reinterpret_cast<u64>(dependency->handle) << " -> n" << name << ";\n";
    }
    file << "}\n";
    file.close();
    require(!file.fail(), CUDA_ERROR_OPERATING_SYSTEM);
  });
}

GPUPOOL_CUDA CUresult cuUserObjectCreate(CUuserObject* out, void* data, CUhostFn destroy,
                                         unsigned int references, unsigned int flags) {
  return call([&] {
    require(out != nullptr && destroy != nullptr && references != 0 &&
            flags == CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
    auto object = std::make_shared<UserObject>();
    object->data = data;
    object->destroy = destroy;
    object->references.store(references);
    *out = user_objects().add(std::move(object));
  });
}

GPUPOOL_CUDA CUresult cuUserObjectRetain(CUuserObject handle, unsigned int count) {
  return call([&] {
    require(count != 0);
    user_objects().get(handle, CUDA_ERROR_INVALID_VALUE)->references.fetch_add(count);
  });
}

GPUPOOL_CUDA CUresult cuUserObjectRelease(CUuserObject handle, unsigned int count) {
  return call([&] { release(handle, count); });
}

GPUPOOL_CUDA CUresult cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count,
                                              unsigned int flags) {
  return call([&] {
    require(count != 0 && (flags & ~static_cast<u32>(CU_GRAPH_USER_OBJECT_MOVE)) == 0);
    const auto graph = graphs().get(graph_handle, CUDA_ERROR_INVALID_VALUE);
    const auto object = user_objects().get(handle, CUDA_ERROR_INVALID_VALUE);
    const std::lock_guard lock(graph_mutex());
    if ((flags & CU_GRAPH_USER_OBJECT_MOVE) == 0) object->references.fetch_add(count);
    graph->user_objects.insert(graph->user_objects.end(), count, object);
  });
}

GPUPOOL_CUDA CUresult cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle,
                                               unsigned int count) {
  return call([&] {
    const auto graph = graphs().get(graph_handle, CUDA_ERROR_INVALID_VALUE);
    const auto object = user_objects().get(handle, CUDA_ERROR_INVALID_VALUE);
    {
      const std::lock_guard lock(graph_mutex());
      auto& held = graph->user_objects;
      require(static_cast<u64>(std::count(held.begin(), held.end(), object)) >= count);
      for (u32 i = 0; i < count; ++i) held.erase(std::find(held.begin(), held.end(), object));
    }
    release(handle, count);
  });
}

}  // namespace gpupool::softgpu
