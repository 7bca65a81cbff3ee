// Buffers and textures of OpenGL that CUDA uses. While one is mapped its contents are device memory, or
// arrays; they are copied when it is mapped and back when it is unmapped, so nobody sees what the other side
// does meanwhile.
#pragma once

#include "hostd/softgpu/api/array.hpp"
#include "hostd/softgpu/api/graphics_gl.hpp"

namespace gpupool::softgpu {

struct GraphicsResource {
  CUgraphicsResource handle = nullptr;
  u32 name = 0;
  u32 target = 0;  // 0: a buffer
  u32 register_flags = 0;
  u32 map_flags = 0;
  u64 context_id = 0;
  bool mapped = false;
  // While it is mapped: a buffer's memory, or the image and its arrays by level, then layer or face.
  u64 address = 0, bytes = 0;
  Image image;
  std::vector<std::vector<std::shared_ptr<Array>>> arrays;

  [[nodiscard]] bool reads() const { return !has(CU_GRAPHICS_REGISTER_FLAGS_WRITE_DISCARD); }
  [[nodiscard]] bool writes() const { return !has(CU_GRAPHICS_REGISTER_FLAGS_READ_ONLY); }

 private:
  // Both kinds of flags have the same numbers (cuda.h).
  [[nodiscard]] bool has(u32 flag) const { return ((register_flags | map_flags) & flag) != 0; }
};

// Forgets those of a context; their memory goes with the context's.
void drop_graphics(const Context& context);

}  // namespace gpupool::softgpu
