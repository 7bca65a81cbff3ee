// Commands that carry images. How many bytes an image has is computed from what the driver says of its own
// pixel storage, so that it never reads or writes beyond what was checked.
#include "gl_dispatch.hpp"  // generated
#include "hostd/worker/opengl/demand.hpp"

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;

i32 store_value(const GlContext& context, GLenum name) {
  GLint value = 0;
  context.api.glGetIntegerv(name, &value);
  return value;
}

wire::PixelStore unpack_of(GlContext& context) {
  const bool es = context.client_api == EGL_OPENGL_ES_API;
  if (es) context.collect();
  wire::PixelStore store;
  store.alignment = store_value(context, GL_UNPACK_ALIGNMENT);
  store.row_length = store_value(context, GL_UNPACK_ROW_LENGTH);
  store.image_height = store_value(context, GL_UNPACK_IMAGE_HEIGHT);
  store.skip_pixels = store_value(context, GL_UNPACK_SKIP_PIXELS);
  store.skip_rows = store_value(context, GL_UNPACK_SKIP_ROWS);
  store.skip_images = store_value(context, GL_UNPACK_SKIP_IMAGES);
  if (es) context.api.glGetError();  // OpenGL ES 2 has but the alignment
  return store;
}

// The pixels of an upload: where they are, an offset into a bound buffer, or null. False when refused.
template <typename A>
bool pixels_of(GlContext& context, GlCommand& command, const A& a, i64 width, i64 height, i64 depth,
               bool images, const void*& pixels) {
  pixels = nullptr;
  if ((command.flags() & wire::kDataIsNull) != 0) {
    command.finish();
    // With a buffer bound null is an offset, and the client would have said so.
    if (context.bound(GL_PIXEL_UNPACK_BUFFER_BINDING) == 0) return true;
  } else if ((command.flags() & wire::kDataIsOffset) != 0) {
    command.finish();
    pixels = reinterpret_cast<const void*>(a.pixels);
    if (context.bound(GL_PIXEL_UNPACK_BUFFER_BINDING) != 0) return true;
  } else {
    const wire::ImageLayout layout =
        wire::image_layout(unpack_of(context), a.format, a.type, width, height, depth, images);
    if (!layout.known) throw wire::ProtocolError("an image of a format that is none");
    pixels = command.array<u8>(a.pixels, layout.bytes, true);
    command.finish();
    if (context.bound(GL_PIXEL_UNPACK_BUFFER_BINDING) == 0) return true;
  }
  context.refuse(command);
  return false;
}

}  // namespace

void handle_glTexImage1D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TexImage1D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, 1, 1, false, pixels)) return;
  const GlCharge charge(context, a);
  if (!charge.taken()) return;
  context.api.glTexImage1D(a.target, a.level, a.internalformat, a.width, a.border, a.format, a.type, pixels);
}

void handle_glTexImage2D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TexImage2D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, a.height, 1, false, pixels)) return;
  const GlCharge charge(context, a);
  if (!charge.taken()) return;
  context.api.glTexImage2D(a.target, a.level, a.internalformat, a.width, a.height, a.border, a.format, a.type,
                           pixels);
}

void handle_glTexImage3D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TexImage3D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, a.height, a.depth, true, pixels)) return;
  const GlCharge charge(context, a);
  if (!charge.taken()) return;
  context.api.glTexImage3D(a.target, a.level, a.internalformat, a.width, a.height, a.depth, a.border,
                           a.format, a.type, pixels);
}

void handle_glTexSubImage1D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TexSubImage1D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, 1, 1, false, pixels)) return;
  context.api.glTexSubImage1D(a.target, a.level, a.xoffset, a.width, a.format, a.type, pixels);
}

void handle_glTexSubImage2D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TexSubImage2D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, a.height, 1, false, pixels)) return;
  context.api.glTexSubImage2D(a.target, a.level, a.xoffset, a.yoffset, a.width, a.height, a.format, a.type,
                              pixels);
}

void handle_glTexSubImage3D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TexSubImage3D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, a.height, a.depth, true, pixels)) return;
  context.api.glTexSubImage3D(a.target, a.level, a.xoffset, a.yoffset, a.zoffset, a.width, a.height, a.depth,
                              a.format, a.type, pixels);
}

void handle_glTextureSubImage1D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TextureSubImage1D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, 1, 1, false, pixels)) return;
  if (context.api.glTextureSubImage1D == nullptr) return context.refuse(command);
  context.api.glTextureSubImage1D(a.texture, a.level, a.xoffset, a.width, a.format, a.type, pixels);
}

void handle_glTextureSubImage2D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TextureSubImage2D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, a.height, 1, false, pixels)) return;
  if (context.api.glTextureSubImage2D == nullptr) return context.refuse(command);
  context.api.glTextureSubImage2D(a.texture, a.level, a.xoffset, a.yoffset, a.width, a.height, a.format,
                                  a.type, pixels);
}

void handle_glTextureSubImage3D(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TextureSubImage3D>();
  const void* pixels = nullptr;
  if (!pixels_of(context, command, a, a.width, a.height, a.depth, true, pixels)) return;
  if (context.api.glTextureSubImage3D == nullptr) return context.refuse(command);
  context.api.glTextureSubImage3D(a.texture, a.level, a.xoffset, a.yoffset, a.zoffset, a.width, a.height,
                                  a.depth, a.format, a.type, pixels);
}

namespace {

// Reads an image of so many bytes, tightly packed whatever the program's own pixel storage says, right into
// the window where it is large. `read` gets the memory, of which it is sure that the driver writes no more.
template <typename Read>
void read_tightly(GlContext& context, GlCommand& command, u64 bytes, Read read) {
  constexpr GLenum kStore[] = {GL_PACK_ALIGNMENT, GL_PACK_ROW_LENGTH,   GL_PACK_SKIP_PIXELS,
                               GL_PACK_SKIP_ROWS, GL_PACK_IMAGE_HEIGHT, GL_PACK_SKIP_IMAGES};
  constexpr int kStores = sizeof kStore / sizeof *kStore;
  const int known = context.client_api == EGL_OPENGL_ES_API ? 4 : kStores;
  const bool in_window = !command.window().empty();
  if (bytes > (in_window ? command.window().size() : command.room_left()))
    throw wire::ProtocolError("too little room for an image");
  GLint before[kStores] = {};
  for (int i = 0; i < known; ++i) {
    before[i] = store_value(context, kStore[i]);
    if (before[i] != (i == 0)) context.api.glPixelStorei(kStore[i], i == 0);
  }
  std::vector<u8> small(in_window ? 0 : bytes);
  context.collect();
  read(in_window ? command.window().data() : small.data());
  const bool done = context.collect();
  for (int i = 0; i < known; ++i)
    if (before[i] != (i == 0)) context.api.glPixelStorei(kStore[i], before[i]);
  if (!done) return;  // then nothing was written, and the program's memory stays as it is
  if (in_window)
    command.answered_in_window(bytes);
  else
    command.put_bytes(small.data(), small.size());
}

}  // namespace

void handle_glReadPixels(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::ReadPixels>();
  command.finish();
  const bool bound = context.bound(GL_PIXEL_PACK_BUFFER_BINDING) != 0;
  const auto read = [&](void* pixels) {
    context.api.glReadPixels(a.x, a.y, a.width, a.height, a.format, a.type, pixels);
  };
  if ((command.flags() & wire::kDataIsOffset) != 0) {
    if (!bound) return context.refuse(command);
    return read(reinterpret_cast<void*>(a.pixels));
  }
  wire::PixelStore tight;
  tight.alignment = 1;
  const wire::ImageLayout layout = wire::image_layout(tight, a.format, a.type, a.width, a.height, 1, false);
  if ((command.flags() & wire::kDataIsNull) != 0) {
    // For its error: an empty or impossible image. Not one that would be written.
    if (!bound && layout.bytes == 0) read(nullptr);
    return;
  }
  command.must_answer();
  if (bound || !layout.known) return context.refuse(command);
  read_tightly(context, command, layout.bytes, read);
}

void handle_glGetTexImage(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::GetTexImage>();
  command.finish();
  if (context.api.glGetTexImage == nullptr) return context.refuse(command);
  const bool bound = context.bound(GL_PIXEL_PACK_BUFFER_BINDING) != 0;
  const auto read = [&](void* pixels) {
    context.api.glGetTexImage(a.target, a.level, a.format, a.type, pixels);
  };
  if ((command.flags() & wire::kDataIsOffset) != 0) {
    if (!bound) return context.refuse(command);
    return read(reinterpret_cast<void*>(a.pixels));
  }
  if ((command.flags() & wire::kDataIsNull) != 0) return;
  command.must_answer();
  // What the driver writes follows from what it says of the texture itself.
  GLint size[3] = {0, 0, 0};
  context.api.glGetTexLevelParameteriv(a.target, a.level, GL_TEXTURE_WIDTH, &size[0]);
  context.api.glGetTexLevelParameteriv(a.target, a.level, GL_TEXTURE_HEIGHT, &size[1]);
  context.api.glGetTexLevelParameteriv(a.target, a.level, GL_TEXTURE_DEPTH, &size[2]);
  wire::PixelStore tight;
  tight.alignment = 1;
  const wire::ImageLayout layout =
      wire::image_layout(tight, a.format, a.type, size[0], size[1], size[2], true);
  if (bound || !layout.known) return context.refuse(command);
  read_tightly(context, command, layout.bytes, read);
}

}  // namespace gpupool::worker
