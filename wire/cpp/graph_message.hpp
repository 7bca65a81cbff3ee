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

}  // namespace gpupool::wire
