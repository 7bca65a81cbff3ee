// The payloads of copies and memsets. These slots are filled directly, not through Call: they are the data
// plane's second most frequent messages. The host's side of a copy is never a pointer but the slot's bulk
// piece.
#pragma once

#include <type_traits>

#include "wire/cpp/layout.hpp"

namespace gpupool::wire {

// cuMemcpyHtoDAsync_v2 and cuMemcpyDtoHAsync_v2. With kBulkIn or kBulkOut the host's side is the bulk piece,
// whose size is `bytes`. cuMemcpyHtoDAsync_v2 without a piece carries the data behind this struct.
struct HostCopy {
  u64 device;
  u64 bytes;
};
inline constexpr u32 kInlineCopyBytes = kInlineBytes - sizeof(HostCopy);

// cuMemcpyDtoDAsync_v2.
struct DeviceCopy {
  u64 destination;
  u64 source;
  u64 bytes;
};

// cuMemcpyPeerAsync. Contexts are handle indices.
struct PeerCopy {
  u64 destination;
  u64 source;
  u64 bytes;
  u32 destination_context;
  u32 source_context;
};

enum class PlaceKind : u32 {
  piece = 1,   // the slot's bulk piece; `address` is relative to its start
  device = 2,  // device memory
  array = 3,   // `address` is the array's handle
};

// One side of a box copy; the meaning of every field is that of CUDA_MEMCPY3D.
struct Place {
  PlaceKind kind;
  u32 lod;
  u64 address;
  u64 x_bytes, y, z;
  u64 pitch;   // bytes from row to row
  u64 height;  // rows from slice to slice
};

// cuMemcpy3DAsync_v2 and cuMemcpy3DPeerAsync; every 2D and array copy too. At most one place is the piece.
struct BoxCopy {
  Place source;
  Place destination;
  u64 width_bytes, height, depth;
  u32 source_context;  // cuMemcpy3DPeerAsync only: handle indices
  u32 destination_context;
};

// cuMemsetD8Async and its five relatives: the function says the width of an element and whether there are
// rows.
struct Memset {
  u64 device;
  u64 pitch;
  u64 width;   // elements
  u64 height;  // rows; 1 for the linear forms
  u64 value;
};

static_assert(std::is_trivially_copyable_v<BoxCopy> && sizeof(BoxCopy) <= kInlineBytes);

}  // namespace gpupool::wire
