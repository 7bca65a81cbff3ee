// Commands that carry images. With a pixel buffer bound `pixels` is an offset into it and nothing travels.
#include "gl_client.hpp"
#include "guest/egl/context.hpp"
#include "wire/cpp/gl_pixels.hpp"

namespace gpupool::guest::gl_api {
namespace {

struct Shape {
  GLenum format;
  GLenum type;
  i64 width, height, depth;
  bool images;
};

// What a command says of its pixels: an offset into the bound buffer, none, or (0) that they travel. A
// format or a size that is none is the driver's to refuse, and needs no pixels for that.
u16 pixel_flags(u32 buffer, const void* pixels, const wire::ImageLayout& layout) {
  if (buffer != 0) return wire::kDataIsOffset;
  if (pixels == nullptr || layout.bytes == 0) return wire::kDataIsNull;
  return 0;
}

// Sends the command whose arguments `fill` writes, with the pixels.
template <typename Arguments, typename Fill>
void upload(wire::GlFunction function, const Shape& shape, const void* pixels, Fill fill) {
  Context* const context = current_context();
  if (context == nullptr) return;
  const wire::ImageLayout layout = wire::image_layout(context->unpack, shape.format, shape.type, shape.width,
                                                      shape.height, shape.depth, shape.images);
  const u16 flags = pixel_flags(context->unpack_buffer, pixels, layout);
  auto* const a = context->begin<Arguments>(function, flags);
  fill(*a);
  a->pixels = flags == wire::kDataIsOffset ? reinterpret_cast<u64>(pixels) : flags == 0 ? layout.bytes : 0;
  if (flags == 0) context->content(pixels, layout.bytes, 1);
  context->end(false);
}

}  // namespace

void glTexImage1D(GLenum target, GLint level, GLint internalformat, GLsizei width, GLint border,
                  GLenum format, GLenum type, const void* pixels) {
  upload<wire::gl_args::TexImage1D>(wire::GlFunction::glTexImage1D, {format, type, width, 1, 1, false},
                                    pixels, [&](auto& a) {
                                      a.target = target;
                                      a.level = level;
                                      a.internalformat = internalformat;
                                      a.width = width;
                                      a.border = border;
                                      a.format = format;
                                      a.type = type;
                                    });
}

void glTexImage2D(GLenum target, GLint level, GLint internalformat, GLsizei width, GLsizei height,
                  GLint border, GLenum format, GLenum type, const void* pixels) {
  upload<wire::gl_args::TexImage2D>(wire::GlFunction::glTexImage2D, {format, type, width, height, 1, false},
                                    pixels, [&](auto& a) {
                                      a.target = target;
                                      a.level = level;
                                      a.internalformat = internalformat;
                                      a.width = width;
                                      a.height = height;
                                      a.border = border;
                                      a.format = format;
                                      a.type = type;
                                    });
}

void glTexImage3D(GLenum target, GLint level, GLint internalformat, GLsizei width, GLsizei height,
                  GLsizei depth, GLint border, GLenum format, GLenum type, const void* pixels) {
  upload<wire::gl_args::TexImage3D>(wire::GlFunction::glTexImage3D,
                                    {format, type, width, height, depth, true}, pixels, [&](auto& a) {
                                      a.target = target;
                                      a.level = level;
                                      a.internalformat = internalformat;
                                      a.width = width;
                                      a.height = height;
                                      a.depth = depth;
                                      a.border = border;
                                      a.format = format;
                                      a.type = type;
                                    });
}

void glTexSubImage1D(GLenum target, GLint level, GLint xoffset, GLsizei width, GLenum format, GLenum type,
                     const void* pixels) {
  upload<wire::gl_args::TexSubImage1D>(wire::GlFunction::glTexSubImage1D, {format, type, width, 1, 1, false},
                                       pixels, [&](auto& a) {
                                         a.target = target;
                                         a.level = level;
                                         a.xoffset = xoffset;
                                         a.width = width;
                                         a.format = format;
                                         a.type = type;
                                       });
}

void glTexSubImage2D(GLenum target, GLint level, GLint xoffset, GLint yoffset, GLsizei width, GLsizei height,
                     GLenum format, GLenum type, const void* pixels) {
  upload<wire::gl_args::TexSubImage2D>(wire::GlFunction::glTexSubImage2D,
                                       {format, type, width, height, 1, false}, pixels, [&](auto& a) {
                                         a.target = target;
                                         a.level = level;
                                         a.xoffset = xoffset;
                                         a.yoffset = yoffset;
                                         a.width = width;
                                         a.height = height;
                                         a.format = format;
                                         a.type = type;
                                       });
}

void glTexSubImage3D(GLenum target, GLint level, GLint xoffset, GLint yoffset, GLint zoffset, GLsizei width,
                     GLsizei height, GLsizei depth, GLenum format, GLenum type, const void* pixels) {
  upload<wire::gl_args::TexSubImage3D>(wire::GlFunction::glTexSubImage3D,
                                       {format, type, width, height, depth, true}, pixels, [&](auto& a) {
                                         a.target = target;
                                         a.level = level;
                                         a.xoffset = xoffset;
                                         a.yoffset = yoffset;
                                         a.zoffset = zoffset;
                                         a.width = width;
                                         a.height = height;
                                         a.depth = depth;
                                         a.format = format;
                                         a.type = type;
                                       });
}

void glTextureSubImage1D(GLuint texture, GLint level, GLint xoffset, GLsizei width, GLenum format,
                         GLenum type, const void* pixels) {
  upload<wire::gl_args::TextureSubImage1D>(wire::GlFunction::glTextureSubImage1D,
                                           {format, type, width, 1, 1, false}, pixels, [&](auto& a) {
                                             a.texture = texture;
                                             a.level = level;
                                             a.xoffset = xoffset;
                                             a.width = width;
                                             a.format = format;
                                             a.type = type;
                                           });
}

void glTextureSubImage2D(GLuint texture, GLint level, GLint xoffset, GLint yoffset, GLsizei width,
                         GLsizei height, GLenum format, GLenum type, const void* pixels) {
  upload<wire::gl_args::TextureSubImage2D>(wire::GlFunction::glTextureSubImage2D,
                                           {format, type, width, height, 1, false}, pixels, [&](auto& a) {
                                             a.texture = texture;
                                             a.level = level;
                                             a.xoffset = xoffset;
                                             a.yoffset = yoffset;
                                             a.width = width;
                                             a.height = height;
                                             a.format = format;
                                             a.type = type;
                                           });
}

void glTextureSubImage3D(GLuint texture, GLint level, GLint xoffset, GLint yoffset, GLint zoffset,
                         GLsizei width, GLsizei height, GLsizei depth, GLenum format, GLenum type,
                         const void* pixels) {
  upload<wire::gl_args::TextureSubImage3D>(wire::GlFunction::glTextureSubImage3D,
                                           {format, type, width, height, depth, true}, pixels, [&](auto& a) {
                                             a.texture = texture;
                                             a.level = level;
                                             a.xoffset = xoffset;
                                             a.yoffset = yoffset;
                                             a.zoffset = zoffset;
                                             a.width = width;
                                             a.height = height;
                                             a.depth = depth;
                                             a.format = format;
                                             a.type = type;
                                           });
}

namespace {

// Tightly packed pixels of the driver's, put where the program's pixel storage wants them; nothing else of
// its memory is touched.
void spread(const wire::ImageLayout& layout, u64 rows, u64 images, const u8* from, u64 size, void* pixels) {
  if (size != layout.row * rows * images) return;
  auto* const out = static_cast<u8*>(pixels) + layout.skip;
  for (u64 image = 0; image < images; ++image)
    for (u64 row = 0; row < rows; ++row, from += layout.row)
      std::memcpy(out + image * layout.image_stride + row * layout.row_stride, from, layout.row);
}

bool has_images(GLenum target) {
  return target == GL_TEXTURE_3D || target == GL_TEXTURE_2D_ARRAY || target == GL_TEXTURE_CUBE_MAP_ARRAY;
}

// Asks with the command whose arguments `fill` writes. The pixels come tightly packed, right into the window,
// and only they are written to the program's memory.
template <typename Arguments, typename Fill>
void download(Context& context, wire::GlFunction function, const Shape& shape, void* pixels, Fill fill) {
  const wire::ImageLayout layout = wire::image_layout(context.pack, shape.format, shape.type, shape.width,
                                                      shape.height, shape.depth, shape.images);
  const u16 flags = pixel_flags(context.pack_buffer, pixels, layout);
  auto* const a = context.begin<Arguments>(function, flags);
  fill(*a);
  a->pixels = reinterpret_cast<u64>(pixels);
  if (flags != 0) return context.end(true);
  const auto rows = static_cast<u64>(shape.height);
  const auto images = static_cast<u64>(shape.depth);
  const u64 bytes = layout.row * rows * images;
  if (images == 1 && layout.row == layout.row_stride) {
    context.ask_into(static_cast<u8*>(pixels) + layout.skip, bytes);
    return;
  }
  context.ask_large(bytes,
                    [&](const u8* from, u64 size) { spread(layout, rows, images, from, size, pixels); });
}

}  // namespace

void glReadPixels(GLint x, GLint y, GLsizei width, GLsizei height, GLenum format, GLenum type, void* pixels) {
  Context* const context = current_context();
  if (context == nullptr) return;
  download<wire::gl_args::ReadPixels>(*context, wire::GlFunction::glReadPixels,
                                      {format, type, width, height, 1, false}, pixels, [&](auto& a) {
                                        a.x = x;
                                        a.y = y;
                                        a.width = width;
                                        a.height = height;
                                        a.format = format;
                                        a.type = type;
                                      });
}

void glGetTexImage(GLenum target, GLint level, GLenum format, GLenum type, void* pixels) {
  Context* const context = current_context();
  if (context == nullptr) return;
  GLint width = 0;
  GLint height = 1;
  GLint depth = 1;
  if (context->pack_buffer == 0) {
    glGetTexLevelParameteriv(target, level, GL_TEXTURE_WIDTH, &width);
    glGetTexLevelParameteriv(target, level, GL_TEXTURE_HEIGHT, &height);
    glGetTexLevelParameteriv(target, level, GL_TEXTURE_DEPTH, &depth);
  }
  download<wire::gl_args::GetTexImage>(*context, wire::GlFunction::glGetTexImage,
                                       {format, type, width, height, depth, has_images(target)}, pixels,
                                       [&](auto& a) {
                                         a.target = target;
                                         a.level = level;
                                         a.format = format;
                                         a.type = type;
                                       });
}

}  // namespace gpupool::guest::gl_api
