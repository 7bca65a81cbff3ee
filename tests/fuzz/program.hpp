// What the session targets are fed: a sequence of messages and of data that the client puts into the window,
// in a form that survives being mutated: every string of bytes is such a program.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "wire/cpp/layout.hpp"

namespace gpupool::fuzz {

inline constexpr u64 kMaxSteps = 64;
inline constexpr u64 kMaxStepData = 8192;

// One thing that the client does.
struct Step {
  bool message = false;
  // A message's slot. Offsets and sizes are 32 bits here; the topmost bit stands for all the higher ones.
  u16 function = 0;
  u16 flags = 0;
  u16 thread = 0;
  u16 context = 0;
  u64 stream = 0;
  u32 bulk_offset = 0;
  u32 bulk_size = 0;
  // Inline payload, or what the client writes at bulk_offset.
  std::vector<u8> bytes;
};

struct Program {
  u8 settings = 0;  // bit 0: the harness makes a context and its streams first
  std::vector<Step> steps;
};

Program parse(std::span<const u8> input);
std::vector<u8> serialise(const Program& program);

constexpr u64 widen(u32 value) {
  return (value >> 31) != 0 ? ~u64{0x7fff'ffff} | value : value;
}
constexpr u32 widen(u16 value) {
  return (value >> 15) != 0 ? ~u32{0x7fff} | value : value;
}

}  // namespace gpupool::fuzz
