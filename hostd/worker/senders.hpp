// Which thread of the client sends. Of interest to what would hold the session's other threads up: that
// matters only where there are any.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// Only the dispatcher comes here.
struct Senders {
  // Messages of one thread in a row after which the others are taken for silent.
  static constexpr u64 kAlone = 256;

  u32 last = 0;  // the thread of the last message; always below wire::kThreads: its next is not checked again
  u64 since = 0;  // the first ticket that it has sent in a row

  void sent(u32 thread, u64 ticket) {
    last = thread;
    since = ticket;
  }
  [[nodiscard]] bool is_alone(u64 ticket) const { return ticket > since && ticket - since >= kAlone; }
};
inline Senders g_senders;  // one dispatcher executes all calls of this process

}  // namespace gpupool::worker
