// OpenGL of the calling thread, whatever EGL the process has: contents of buffers and textures, read and
// written without a change that the program could see.
#pragma once

#include <vector>

#include "hostd/softgpu/api/api.hpp"

namespace gpupool::softgpu {

// How pixels of an internal format lie in memory, for both sides.
struct PixelLayout {
  u32 internal_format = 0;
  u32 format = 0, type = 0;  // OpenGL's
  CUarray_format element{};
  u32 channels = 0;
};

struct ImageLevel {
  u32 width = 0, height = 0, depth = 0;  // depth: of a volume, or how many layers
};

struct Image {
  PixelLayout pixels;
  std::vector<ImageLevel> levels;
};

// A binding of a buffer or texture, for as long as this lives. Each throws Error: INVALID_VALUE
// without a current context and for a name that is none, MAP_FAILED.
class BufferAccess {
 public:
  explicit BufferAccess(u32 name);
  ~BufferAccess();
  BufferAccess(const BufferAccess&) = delete;
  BufferAccess& operator=(const BufferAccess&) = delete;
  [[nodiscard]] u64 bytes() const { return bytes_; }
  void read(void* to);
  void write(const void* from);

 private:
  u32 before_ = 0;
  u64 bytes_ = 0;
};

class ImageAccess {
 public:
  ImageAccess(u32 name, u32 target);
  ~ImageAccess();
  ImageAccess(const ImageAccess&) = delete;
  ImageAccess& operator=(const ImageAccess&) = delete;
  [[nodiscard]] Image describe() const;
  // A whole level; of a cube, one face. Rows without gaps.
  void read(const PixelLayout& pixels, u32 level, u32 face, void* to);
  void write(const PixelLayout& pixels, const ImageLevel& size, u32 level, u32 face, const void* from);

 private:
  u32 target_ = 0;
  u32 before_ = 0;
};

inline constexpr u32 kCubeFaces = 6;
bool is_cube(u32 target);
bool has_layers(u32 target);
void require_opengl();

}  // namespace gpupool::softgpu
