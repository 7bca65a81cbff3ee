// The page over which a GPU's arbiter gives one session leave to use that GPU. hostd makes it, one a session
// and GPU; only the session's worker and the arbiter map it.
//
// Nothing in it is trusted by the arbiter: a worker that lies hurts its own vGPU only, because the arbiter's
// clock decides when a lease ends and what it is charged.
//
// The two agree without a lock. A worker stores `busy`, then looks at `state`; the arbiter stores `state`,
// then looks at `busy` (both sequentially consistent). So either the worker sees that the lease is shut
// before it submits anything, or the arbiter sees that it is busy and waits for the drain.
//
// A page of zeros is a lease that is open for ever: what a session has until an arbiter finds it.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::pages {

enum class LeaseState : u32 {
  free = 0,  // nobody has to wait on this GPU: submit, and keep no account of it
  shut = 1,  // submit nothing; drain what is in flight
  held = 2,  // submit what will be done by end_ns
};

struct LeasePage {
  static constexpr u64 kBytes = 4096;
  static constexpr u32 kMagic = 0x5341'454c;  // "LEAS"
  static constexpr u32 kVersion = 1;
  static constexpr u64 kBeatNs = 100'000'000;      // `beat_ns` is never older while the arbiter lives
  static constexpr u64 kSilentNs = 1'000'000'000;  // a beat that is older: there is no arbiter

  // What the arbiter writes.
  struct alignas(128) Grant {
    std::atomic<LeaseState> state;
    std::atomic<u32> turn;     // one more with every change of `state`: what workers sleep on
    std::atomic<u64> number;   // of the lease, from 1; those of all vGPUs on this GPU count together
    std::atomic<u64> end_ns;   // CLOCK_MONOTONIC; may be moved while the lease is held
    std::atomic<u64> beat_ns;  // CLOCK_MONOTONIC
    std::atomic<u64> used_ns;  // what the vGPU has been charged since the arbiter knows it
    std::atomic<u32> magic;
    std::atomic<u32> version;
  };
  // What the worker writes.
  struct alignas(128) Want {
    std::atomic<u32> bell;   // one more with every change of what follows: what the arbiter sleeps on
    std::atomic<u32> wants;  // 1: it has something to submit and may not
    std::atomic<u32> busy;   // 1: something may be in flight, or about to be submitted
    u32 reserved;
    std::atomic<u64> done;  // the newest lease that it will not use any more
  };

  Grant grant;
  Want want;
};
static_assert(sizeof(LeasePage::Grant) == 128 && sizeof(LeasePage::Want) == 128 &&
              sizeof(LeasePage) <= LeasePage::kBytes);

}  // namespace gpupool::pages
