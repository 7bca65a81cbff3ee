// Where the pixels of an image lie in memory: OpenGL 4.6, 8.4.4.1 and 18.2.1. Both ends compute it, the
// client from what it was told by glPixelStore, the worker from what its driver says.
#pragma once

#include "gl_enums.hpp"
#include "wire/cpp/gl_types.hpp"

namespace gpupool::wire {

// As glPixelStore sets it, for one direction.
struct PixelStore {
  i32 alignment = 4;
  i32 row_length = 0, image_height = 0;
  i32 skip_pixels = 0, skip_rows = 0, skip_images = 0;
};

struct PixelSize {
  u64 element = 0;  // what alignment counts in; 0: not a format and a type that go together
  u64 group = 0;    // bytes of one pixel
};

// 0: no such format.
constexpr u64 components_of(gl::GLenum format) {
  switch (format) {
    case gl::GL_RED:
    case gl::GL_GREEN:
    case gl::GL_BLUE:
    case gl::GL_ALPHA:
    case gl::GL_LUMINANCE:
    case gl::GL_RED_INTEGER:
    case gl::GL_GREEN_INTEGER:
    case gl::GL_BLUE_INTEGER:
    case gl::GL_STENCIL_INDEX:
    case gl::GL_DEPTH_COMPONENT:
      return 1;
    case gl::GL_RG:
    case gl::GL_RG_INTEGER:
    case gl::GL_LUMINANCE_ALPHA:
    case gl::GL_DEPTH_STENCIL:
      return 2;
    case gl::GL_RGB:
    case gl::GL_BGR:
    case gl::GL_RGB_INTEGER:
    case gl::GL_BGR_INTEGER:
      return 3;
    case gl::GL_RGBA:
    case gl::GL_BGRA:
    case gl::GL_RGBA_INTEGER:
    case gl::GL_BGRA_INTEGER:
      return 4;
    default:
      return 0;
  }
}

constexpr PixelSize pixel_size(gl::GLenum format, gl::GLenum type) {
  const u64 components = components_of(format);
  if (components == 0) return {};
  switch (type) {
    case gl::GL_UNSIGNED_BYTE:
    case gl::GL_BYTE:
      return {1, components};
    case gl::GL_UNSIGNED_SHORT:
    case gl::GL_SHORT:
    case gl::GL_HALF_FLOAT:
    case gl::GL_HALF_FLOAT_OES:
      return {2, 2 * components};
    case gl::GL_UNSIGNED_INT:
    case gl::GL_INT:
    case gl::GL_FLOAT:
      return {4, 4 * components};
    case gl::GL_UNSIGNED_BYTE_3_3_2:
    case gl::GL_UNSIGNED_BYTE_2_3_3_REV:
      return {1, 1};
    case gl::GL_UNSIGNED_SHORT_5_6_5:
    case gl::GL_UNSIGNED_SHORT_5_6_5_REV:
    case gl::GL_UNSIGNED_SHORT_4_4_4_4:
    case gl::GL_UNSIGNED_SHORT_4_4_4_4_REV:
    case gl::GL_UNSIGNED_SHORT_5_5_5_1:
    case gl::GL_UNSIGNED_SHORT_1_5_5_5_REV:
      return {2, 2};
    case gl::GL_UNSIGNED_INT_8_8_8_8:
    case gl::GL_UNSIGNED_INT_8_8_8_8_REV:
    case gl::GL_UNSIGNED_INT_10_10_10_2:
    case gl::GL_UNSIGNED_INT_2_10_10_10_REV:
    case gl::GL_UNSIGNED_INT_24_8:
    case gl::GL_UNSIGNED_INT_10F_11F_11F_REV:
    case gl::GL_UNSIGNED_INT_5_9_9_9_REV:
      return {4, 4};
    case gl::GL_FLOAT_32_UNSIGNED_INT_24_8_REV:
      return {4, 8};
    default:
      return {};
  }
}

struct ImageLayout {
  bool known = false;  // the format and the type go together, and nothing overflows
  u64 skip = 0;        // bytes before the first pixel
  u64 row = 0;         // bytes of a row's pixels
  u64 row_stride = 0, image_stride = 0;
  u64 bytes = 0;  // from the pointer to the end of the last pixel; 0 for an empty image
};

// `images` says whether skip_images and image_height count: in three dimensions.
constexpr ImageLayout image_layout(const PixelStore& store, gl::GLenum format, gl::GLenum type, i64 width,
                                   i64 height, i64 depth, bool images) {
  constexpr i64 kMostEdge = 1 << 20;
  const PixelSize size = pixel_size(format, type);
  ImageLayout layout;
  const auto sane = [](i64 value) { return value >= 0 && value <= kMostEdge; };
  if (size.element == 0 || !sane(width) || !sane(height) || !sane(depth) || !sane(store.row_length) ||
      !sane(store.image_height) || !sane(store.skip_pixels) || !sane(store.skip_rows) ||
      !sane(store.skip_images) || store.alignment <= 0)
    return layout;
  layout.known = true;
  const auto alignment = static_cast<u64>(store.alignment);
  const u64 length = static_cast<u64>(store.row_length > 0 ? store.row_length : width) * size.group;
  layout.row = static_cast<u64>(width) * size.group;
  layout.row_stride = size.element >= alignment ? length : (length + alignment - 1) / alignment * alignment;
  // At most 2^20 * 16 * 2^20: no overflow; with images it is checked below.
  const u64 rows = static_cast<u64>(images && store.image_height > 0 ? store.image_height : height);
  layout.image_stride = layout.row_stride * rows;
  if (layout.image_stride > u64{1} << 42) return {};
  layout.skip = (images ? static_cast<u64>(store.skip_images) * layout.image_stride : 0) +
                static_cast<u64>(store.skip_rows) * layout.row_stride +
                static_cast<u64>(store.skip_pixels) * size.group;
  if (width != 0 && height != 0 && depth != 0)
    layout.bytes = layout.skip + static_cast<u64>(depth - 1) * layout.image_stride +
                   static_cast<u64>(height - 1) * layout.row_stride + layout.row;
  return layout;
}

}  // namespace gpupool::wire
