// One word that every entry point looks at: zero while a call may go straight to its function. Anything else
// (no session yet or any more, a forked child, profiling) takes the entry point's second body, which looks
// again in detail. So profiling costs a program that does not ask for it nothing: there is no other look.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

inline constexpr u32 kGateShut = 1;      // there may be no session that works
inline constexpr u32 kGateProfiled = 2;  // calls are timed (profile.hpp)

// A cache line of its own: every call of every thread reads it.
struct alignas(64) Gate {
  std::atomic<u32> bits{kGateShut};
};
extern Gate g_gate;

inline bool straight() {
  return g_gate.bits.load(std::memory_order_acquire) == 0;
}
inline bool profiling() {
  return (g_gate.bits.load(std::memory_order_relaxed) & kGateProfiled) != 0;
}

}  // namespace gpupool::guest
