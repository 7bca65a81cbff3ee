#include "hostd/worker/opengl/texel.hpp"

#include <algorithm>

#include "gl_enums.hpp"  // generated

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;

constexpr u64 kTooMany = ~u64{0};
constexpr u32 kLargestTexel = 16;

u64 times(u64 a, u64 b) {
  u64 product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kTooMany : product;
}

constexpr u64 blocks(u64 edge) {
  return edge / 4 + (edge % 4 != 0);
}

// Of one channel whose format says only which channels there are.
u32 channel_bytes(u32 type) {
  switch (type) {
    case GL_SHORT:
    case GL_UNSIGNED_SHORT:
    case GL_HALF_FLOAT:
      return 2;
    case GL_INT:
    case GL_UNSIGNED_INT:
    case GL_FLOAT:
      return 4;
    default:
      return 1;
  }
}

// Formats of which all blocks of 4x4 texels and more have at most 16 bytes (Khronos Data Format
// Specification 1.3, chapters 18 to 23).
bool is_compressed(u32 format) {
  const auto within = [&](u32 first, u32 last) { return format >= first && format <= last; };
  return within(GL_COMPRESSED_RED_RGTC1, GL_COMPRESSED_SIGNED_RG_RGTC2) ||
         within(GL_COMPRESSED_RGBA_BPTC_UNORM, GL_COMPRESSED_RGB_BPTC_UNSIGNED_FLOAT) ||
         within(GL_COMPRESSED_RGB_S3TC_DXT1_EXT, GL_COMPRESSED_RGBA_S3TC_DXT5_EXT) ||
         within(GL_COMPRESSED_SRGB_S3TC_DXT1_EXT, GL_COMPRESSED_SRGB_ALPHA_S3TC_DXT5_EXT) ||
         within(GL_COMPRESSED_R11_EAC, GL_COMPRESSED_SRGB8_ALPHA8_ETC2_EAC) ||
         within(GL_COMPRESSED_RGBA_ASTC_4x4_KHR, GL_COMPRESSED_RGBA_ASTC_12x12_KHR) ||
         within(GL_COMPRESSED_SRGB8_ALPHA8_ASTC_4x4_KHR, GL_COMPRESSED_SRGB8_ALPHA8_ASTC_12x12_KHR);
}

// Three channels take the room of four, as GPUs store them.
u32 plain_bytes(u32 format, u32 type) {
  switch (format) {
    case GL_RED:
    case GL_COMPRESSED_RED:
    case GL_LUMINANCE:
    case GL_ALPHA:
      return channel_bytes(type);
    case GL_RG:
    case GL_COMPRESSED_RG:
    case GL_LUMINANCE_ALPHA:
      return 2 * channel_bytes(type);
    case GL_RGB:
    case GL_RGBA:
    case GL_BGRA:
    case GL_SRGB:
    case GL_SRGB_ALPHA:
    case GL_COMPRESSED_RGB:
    case GL_COMPRESSED_RGBA:
    case GL_COMPRESSED_SRGB:
    case GL_COMPRESSED_SRGB_ALPHA:
      return std::max(4u, 4 * channel_bytes(type == GL_UNSIGNED_INT_24_8 ? 0 : type));
    case GL_R8:
    case GL_R8_SNORM:
    case GL_R8I:
    case GL_R8UI:
    case GL_R3_G3_B2:
    case GL_RGBA2:
    case GL_STENCIL_INDEX8:
      return 1;
    case GL_R16:
    case GL_R16_SNORM:
    case GL_R16F:
    case GL_R16I:
    case GL_R16UI:
    case GL_RG8:
    case GL_RG8_SNORM:
    case GL_RG8I:
    case GL_RG8UI:
    case GL_RGB4:
    case GL_RGB5:
    case GL_RGB565:
    case GL_RGBA4:
    case GL_RGB5_A1:
    case GL_DEPTH_COMPONENT16:
      return 2;
    case GL_RGB8:
    case GL_RGB8_SNORM:
    case GL_RGB8I:
    case GL_RGB8UI:
    case GL_SRGB8:
    case GL_RGBA8:
    case GL_RGBA8_SNORM:
    case GL_RGBA8I:
    case GL_RGBA8UI:
    case GL_BGRA8_EXT:
    case GL_SRGB8_ALPHA8:
    case GL_R32F:
    case GL_R32I:
    case GL_R32UI:
    case GL_RG16:
    case GL_RG16_SNORM:
    case GL_RG16F:
    case GL_RG16I:
    case GL_RG16UI:
    case GL_RGB10:
    case GL_RGB10_A2:
    case GL_RGB10_A2UI:
    case GL_R11F_G11F_B10F:
    case GL_RGB9_E5:
    case GL_DEPTH_COMPONENT:
    case GL_DEPTH_COMPONENT24:
    case GL_DEPTH_COMPONENT32:
    case GL_DEPTH_COMPONENT32F:
    case GL_DEPTH24_STENCIL8:
    case GL_STENCIL_INDEX:
      return 4;
    case GL_DEPTH_STENCIL:
      return type == GL_FLOAT_32_UNSIGNED_INT_24_8_REV ? 8 : 4;
    case GL_RGB12:
    case GL_RGB16:
    case GL_RGB16_SNORM:
    case GL_RGB16F:
    case GL_RGB16I:
    case GL_RGB16UI:
    case GL_RGBA12:
    case GL_RGBA16:
    case GL_RGBA16_SNORM:
    case GL_RGBA16F:
    case GL_RGBA16I:
    case GL_RGBA16UI:
    case GL_RG32F:
    case GL_RG32I:
    case GL_RG32UI:
    case GL_DEPTH32F_STENCIL8:
      return 8;
    default:
      return kLargestTexel;
  }
}

}  // namespace

u64 GlImage::bytes() const {
  const u64 across = compressed ? times(blocks(width), blocks(height)) : times(width, height);
  return times(times(times(across, depth), texel_bytes), std::max(samples, 1u));
}

bool GlImage::is_last() const {
  return width <= 1 && (halves < 2 || height <= 1) && (halves < 3 || depth <= 1);
}

GlImage GlImage::next() const {
  GlImage below = *this;
  const auto half = [](u64 edge) { return edge > 1 ? edge / 2 : edge; };
  below.width = half(width);
  if (halves >= 2) below.height = half(height);
  if (halves >= 3) below.depth = half(depth);
  return below;
}

GlTexel texel_of(u32 internal_format, u32 type) {
  if (is_compressed(internal_format)) return {16, true};
  return {plain_bytes(internal_format, type), false};
}

}  // namespace gpupool::worker
