// Memory that graphs allocate.
#pragma once

#include "hostd/softgpu/api/graph.hpp"

namespace gpupool::softgpu {

// What a node allocates: its place is reserved as long as a graph or an executable graph has the node.
struct GraphMemory {
  u64 address = 0;
  u64 bytes = 0;
  int device = 0;
  CUmemPoolProps properties{};
  std::vector<CUmemAccessDesc> access;
  bool taken = false;  // allocated, as far as launches have been submitted; guarded by graph_mutex()

  GraphMemory() = default;
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;
  ~GraphMemory();
};

class AllocationOperation final : public Operation {
 public:
  std::shared_ptr<GraphMemory> memory;
  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_MEM_ALLOC; }
  CUresult run(Context& context) const override;
};

class GraphFreeOperation final : public Operation {
 public:
  u64 address = 0;
  std::shared_ptr<GraphMemory> memory;
  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_MEM_FREE; }
  CUresult run(Context& context) const override;
};

// Memory for a node that allocates. Error INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY.
std::shared_ptr<AllocationOperation> make_allocation(const CUDA_MEM_ALLOC_NODE_PARAMS& parameters);
std::shared_ptr<GraphFreeOperation> make_free(u64 address);
// The graph memory that begins at an address, or null.
std::shared_ptr<GraphMemory> find_graph_memory(u64 address);
// For a free outside of graphs; false when the address is no graph's. Error INVALID_VALUE when it is free.
bool free_graph_memory(u64 address);

// These expect graph_mutex() to be held.
// What a launch of these steps allocates and frees. Error INVALID_VALUE when it would allocate what is
// allocated; with `free_first` that is freed instead.
void note_memory_of_launch(const std::vector<GraphStep>& steps, bool free_first);
bool has_memory_nodes(const Graph& graph);

}  // namespace gpupool::softgpu
