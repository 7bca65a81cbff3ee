// How much device memory a resource of virgl's takes: what the vGPU's account is charged before OpenGL is
// asked. An estimate from its shape; drivers add alignment. Numbers of formats and targets are those of
// virgl's protocol (virgl_hw.h, p_defines.h), which are fixed for good.
#pragma once

#include <optional>

#include "wire/cpp/types.hpp"

namespace gpupool::renderer {

enum class Target : u32 { buffer, one, two, three, cube, rectangle, one_array, two_array, cube_array };
inline constexpr u32 kTargets = 9;

// As a client asks for it; nothing here is checked yet.
struct Shape {
  u32 target = 0;
  u32 format = 0;
  u32 bind = 0;
  u32 width = 0;
  u32 height = 0;
  u32 depth = 0;
  u32 array_size = 0;
  u32 last_level = 0;
  u32 samples = 0;
};

struct Box {
  u32 x = 0, y = 0, z = 0, width = 0, height = 0, depth = 0;
};

// Device memory of all its levels, or nothing for a shape that no OpenGL has.
std::optional<u64> device_bytes(const Shape& shape);

// Whether the box lies inside that level; `shape` has been measured before.
bool holds(const Shape& shape, u32 level, const Box& box);

// Bytes of the box in memory without gaps.
u64 tight_bytes(const Shape& shape, const Box& box);

}  // namespace gpupool::renderer
