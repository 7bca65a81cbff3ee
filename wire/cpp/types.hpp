// Fixed-width names used throughout the data plane, and the handle that stands for a driver object on
// the wire. Depends on nothing; both ends include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpupool {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

}  // namespace gpupool

namespace gpupool::wire {

// What a handle refers to. The number is part of the protocol: append, never reorder.
enum class HandleKind : u8 {
  none = 0,
  context = 1,
  stream = 2,
  event = 3,
  module = 4,
  library = 5,
  function = 6,  // a CUfunction or a CUkernel: both can be launched
  graph = 7,
  graph_exec = 8,
  graph_node = 9,
  mem_pool = 10,
  array = 11,
  mipmapped_array = 12,
  link_state = 13,
  mem_allocation = 14,  // CUmemGenericAllocationHandle
  texref = 15,          // texture and surface references, which live as long as their module
  surfref = 16,
  graphics_resource = 17,
  count_
};

// A driver object on the wire: never a pointer of either process. Bits: kind 8 | generation 24 | index 32.
// The index is normally chosen by the client, so that creating an object needs no answer; an index with
// kWorkerAssigned set was chosen by the worker, for objects that the driver returns (nodes of a captured
// graph). The generation differs each time an index is used again, so a stale handle is recognised.
struct Handle {
  u64 bits = 0;

  static constexpr u32 kWorkerAssigned = 0x8000'0000u;

  static constexpr Handle make(HandleKind kind, u32 generation, u32 index) {
    return Handle{(static_cast<u64>(kind) << 56) | (static_cast<u64>(generation & 0xff'ffffu) << 32) | index};
  }
  [[nodiscard]] constexpr HandleKind kind() const { return static_cast<HandleKind>(bits >> 56); }
  [[nodiscard]] constexpr u32 generation() const { return static_cast<u32>(bits >> 32) & 0xff'ffffu; }
  [[nodiscard]] constexpr u32 index() const { return static_cast<u32>(bits); }
  [[nodiscard]] constexpr explicit operator bool() const { return bits != 0; }
  friend constexpr bool operator==(Handle, Handle) = default;
};

}  // namespace gpupool::wire
