// Parameters of graph nodes on the wire. Memcpy nodes travel as a BoxCopy (copy_message.hpp) in which
// PlaceKind::piece means pinned memory: `address` is then its offset in the window.
#pragma once

#include <type_traits>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

// Followed by the packed parameters as a counted run of bytes.
struct GraphKernel {
  Handle function;
  u32 grid[3];
  u32 block[3];
  u32 shared_bytes;
  u32 context;  // handle index; 0: the current one
};
static_assert(std::is_trivially_copyable_v<GraphKernel> && sizeof(GraphKernel) == 40);

// A CUDA_MEMSET_NODE_PARAMS with its context.
struct GraphMemset {
  u64 destination;
  u64 pitch;
  u32 value;
  u32 element_bytes;
  u64 width;
  u64 height;
  u32 context;  // handle index
  u32 reserved;
};
static_assert(std::is_trivially_copyable_v<GraphMemset> && sizeof(GraphMemset) == 48);

inline constexpr u64 kMostMemoryOperations = 256;  // of one node: the driver's own limit for a batch
inline constexpr u64 kMostBodies = 1u << 16;       // of one conditional node
inline constexpr u64 kMostDotBytes = 256u << 20;   // of one graph's cuGraphDebugDotPrint

// One node that the client must follow, in the answer to graph_followed.
enum class FollowedKind : u32 {
  host_function = 0,  // value: its id
  event = 1,          // that is recorded; value: its handle
  window = 2,         // a copy from or to the window; value: the offset
};
struct FollowedNode {
  u64 node;  // handle
  u64 value;
  FollowedKind kind;
  u32 reserved;
};
static_assert(std::is_trivially_copyable_v<FollowedNode> && sizeof(FollowedNode) == 24);

// A graph inside another, in the answer to graph_inside.
struct InnerGraph {
  u64 graph;  // handle
  u64 copy;   // its counterpart in the copy that was asked about; 0: none known
};
static_assert(std::is_trivially_copyable_v<InnerGraph> && sizeof(InnerGraph) == 16);

}  // namespace gpupool::wire
