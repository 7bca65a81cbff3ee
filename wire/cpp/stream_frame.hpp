// What travels over a byte stream when client and worker share no memory. Each side has a window of its own
// and a pump that mirrors it, so that everything above works as on shared memory.
//
// Order is what makes it right: data that a slot needs is sent before the slot; data that a completion covers
// is sent before the word or the answer that announces it; an error before the completion that would hide it.
// Large data may go over several connections (lanes.hpp); then an `await` stands where it would have stood.
#pragma once

#include "wire/cpp/layout.hpp"

namespace gpupool::wire {

enum class FrameKind : u32 {
  slots = 1,  // client to worker: `count` slots follow, with consecutive sequence numbers
  data = 2,   // both ways: `size` bytes follow, for the window at `offset`
  store =
      3,  // worker to client: store `size` as a u64 at `offset` (a word, a reply's `done`, the ring's head)
  error = 4,     // worker to client: asynchronous error `count` of function `offset`
  fatal = 5,     // worker to client: the context is lost with error `count`
  released = 6,  // client to worker: Control::host_released is `size`; never waits for the ring
  await = 7,     // both ways, main connection: what follows holds once lane `count` has brought `size` frames
};

struct Frame {
  FrameKind kind{};
  u32 count = 0;
  u64 offset = 0;
  u64 size = 0;
};
static_assert(sizeof(Frame) == 24);

inline constexpr u32 kMaxSlotsPerFrame = 256;
inline constexpr u64 kMaxDataPerFrame = 4u << 20;  // longer pieces are split

}  // namespace gpupool::wire
