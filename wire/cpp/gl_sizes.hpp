// How much memory a pointer of OpenGL leads to, where that follows from other arguments. Both ends compute
// it: the client to know what to send, the worker to check what came.
#pragma once

#include <limits>

#include "gl_enums.hpp"  // generated
#include "wire/cpp/gl_pixels.hpp"
#include "wire/cpp/gl_types.hpp"

namespace gpupool::wire::gl_sizes {

// A count that no memory fulfils, for what would overflow.
inline constexpr u64 kImpossible = std::numeric_limits<u64>::max() / 64;

// A negative count leads to nothing: the driver refuses it.
constexpr u64 elements(i64 count, u64 factor, u64 divisor) {
  if (count <= 0) return 0;
  const u64 many = static_cast<u64>(count);
  return many > kImpossible / factor ? kImpossible : many * factor / divisor;
}

// glTexParameter and glSamplerParameter.
constexpr u64 texture_parameter(gl::GLenum name) {
  return name == gl::GL_TEXTURE_BORDER_COLOR || name == gl::GL_TEXTURE_SWIZZLE_RGBA ? 4 : 1;
}

constexpr u64 patch_parameter(gl::GLenum name) {
  return name == gl::GL_PATCH_DEFAULT_OUTER_LEVEL ? 4 : 2;
}

// One pixel: glClearTexImage and glClearBufferData.
constexpr u64 pixel(gl::GLenum format, gl::GLenum type) {
  return pixel_size(format, type).group;
}

// glClearBuffer.
constexpr u64 clear_value(gl::GLenum buffer) {
  return buffer == gl::GL_COLOR ? 4 : 1;
}

}  // namespace gpupool::wire::gl_sizes
