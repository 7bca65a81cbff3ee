// A size that is negative, a level that no texture has: the driver says what is wrong with those, and takes
// nothing. A target that we do not know never reaches it.
#include "hostd/worker/opengl/demand.hpp"

#include <algorithm>

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;
using Verdict = GlDemand::Verdict;

constexpr i32 kMostLevels = 32;

GlDemand bad_target() {
  GlDemand none;
  none.verdict = Verdict::bad_target;
  return none;
}

u32 buffer_binding(u32 target) {
  switch (target) {
    case GL_ARRAY_BUFFER:
      return GL_ARRAY_BUFFER_BINDING;
    case GL_ELEMENT_ARRAY_BUFFER:
      return GL_ELEMENT_ARRAY_BUFFER_BINDING;
    case GL_PIXEL_PACK_BUFFER:
      return GL_PIXEL_PACK_BUFFER_BINDING;
    case GL_PIXEL_UNPACK_BUFFER:
      return GL_PIXEL_UNPACK_BUFFER_BINDING;
    case GL_UNIFORM_BUFFER:
      return GL_UNIFORM_BUFFER_BINDING;
    case GL_TEXTURE_BUFFER:
      return GL_TEXTURE_BUFFER_BINDING;
    case GL_TRANSFORM_FEEDBACK_BUFFER:
      return GL_TRANSFORM_FEEDBACK_BUFFER_BINDING;
    case GL_COPY_READ_BUFFER:
      return GL_COPY_READ_BUFFER_BINDING;
    case GL_COPY_WRITE_BUFFER:
      return GL_COPY_WRITE_BUFFER_BINDING;
    case GL_DRAW_INDIRECT_BUFFER:
      return GL_DRAW_INDIRECT_BUFFER_BINDING;
    case GL_DISPATCH_INDIRECT_BUFFER:
      return GL_DISPATCH_INDIRECT_BUFFER_BINDING;
    case GL_SHADER_STORAGE_BUFFER:
      return GL_SHADER_STORAGE_BUFFER_BINDING;
    case GL_ATOMIC_COUNTER_BUFFER:
      return GL_ATOMIC_COUNTER_BUFFER_BINDING;
    case GL_QUERY_BUFFER:
      return GL_QUERY_BUFFER_BINDING;
    case GL_PARAMETER_BUFFER:
      return GL_PARAMETER_BUFFER_BINDING;
    default:
      return 0;
  }
}

struct Target {
  u32 binding = 0;  // 0: none that we know
  u32 halves = 1;
  u32 face = 0;
  u32 faces = 1;  // that the target itself has, for storage of all
  u32 whole = 0;  // the target of the texture
  bool proxy = false;
};

Target target_of(u32 target) {
  if (target >= GL_TEXTURE_CUBE_MAP_POSITIVE_X && target <= GL_TEXTURE_CUBE_MAP_NEGATIVE_Z)
    return {GL_TEXTURE_BINDING_CUBE_MAP, 2, target - GL_TEXTURE_CUBE_MAP_POSITIVE_X, 1, GL_TEXTURE_CUBE_MAP};
  switch (target) {
    case GL_TEXTURE_1D:
      return {GL_TEXTURE_BINDING_1D, 1, 0, 1, target};
    case GL_TEXTURE_1D_ARRAY:
      return {GL_TEXTURE_BINDING_1D_ARRAY, 1, 0, 1, target};
    case GL_TEXTURE_2D:
      return {GL_TEXTURE_BINDING_2D, 2, 0, 1, target};
    case GL_TEXTURE_2D_ARRAY:
      return {GL_TEXTURE_BINDING_2D_ARRAY, 2, 0, 1, target};
    case GL_TEXTURE_RECTANGLE:
      return {GL_TEXTURE_BINDING_RECTANGLE, 2, 0, 1, target};
    case GL_TEXTURE_CUBE_MAP:
      return {GL_TEXTURE_BINDING_CUBE_MAP, 2, 0, 6, target};
    case GL_TEXTURE_CUBE_MAP_ARRAY:
      return {GL_TEXTURE_BINDING_CUBE_MAP_ARRAY, 2, 0, 1, target};
    case GL_TEXTURE_3D:
      return {GL_TEXTURE_BINDING_3D, 3, 0, 1, target};
    case GL_TEXTURE_2D_MULTISAMPLE:
      return {GL_TEXTURE_BINDING_2D_MULTISAMPLE, 2, 0, 1, target};
    case GL_TEXTURE_2D_MULTISAMPLE_ARRAY:
      return {GL_TEXTURE_BINDING_2D_MULTISAMPLE_ARRAY, 2, 0, 1, target};
    case GL_PROXY_TEXTURE_1D:
    case GL_PROXY_TEXTURE_1D_ARRAY:
    case GL_PROXY_TEXTURE_2D:
    case GL_PROXY_TEXTURE_2D_ARRAY:
    case GL_PROXY_TEXTURE_RECTANGLE:
    case GL_PROXY_TEXTURE_CUBE_MAP:
    case GL_PROXY_TEXTURE_CUBE_MAP_ARRAY:
    case GL_PROXY_TEXTURE_3D:
    case GL_PROXY_TEXTURE_2D_MULTISAMPLE:
    case GL_PROXY_TEXTURE_2D_MULTISAMPLE_ARRAY:
      return {.proxy = true};
    default:
      return {};
  }
}

u64 texture_key(const GlContext& context, const Target& target) {
  const u32 name = context.bound(target.binding);
  return name != 0 ? GlStorage::key(GlKind::texture, name)
                   : GlStorage::default_key(context.index, target.whole);
}

GlDemand plain(GlKind kind, u32 name, u64 bytes) {
  GlDemand demand;
  if (name == 0) return demand;
  demand.verdict = Verdict::counted;
  demand.key = GlStorage::key(kind, name);
  demand.bytes = bytes;
  return demand;
}

GlDemand buffer(const GlContext& context, u32 target, i64 size) {
  const u32 binding = buffer_binding(target);
  if (binding == 0) return bad_target();
  if (size < 0) return {};
  return plain(GlKind::buffer, context.bound(binding), static_cast<u64>(size));
}

GlDemand named_buffer(u32 name, i64 size) {
  return size < 0 ? GlDemand{} : plain(GlKind::buffer, name, static_cast<u64>(size));
}

// Of an image's command; without samples or edges when one is negative, which takes nothing.
GlImage image(u32 format, u32 type, i64 width, i64 height, i64 depth, i64 samples) {
  GlImage made;
  const GlTexel texel = texel_of(format, type);
  made.texel_bytes = texel.bytes;
  made.compressed = texel.compressed;
  const bool possible = width >= 0 && height >= 0 && depth >= 0 && samples >= 0;
  made.width = possible ? static_cast<u64>(width) : 0;
  made.height = possible ? static_cast<u64>(height) : 0;
  made.depth = possible ? static_cast<u64>(depth) : 0;
  made.samples = possible ? static_cast<u32>(samples) : 0;
  return made;
}

GlDemand renderbuffer(u32 name, i32 samples, u32 format, i32 width, i32 height) {
  return plain(GlKind::renderbuffer, name, image(format, 0, width, height, 1, samples).bytes());
}

void sum_up(GlDemand& demand) {
  demand.bytes = 0;
  for (const auto& [place, one] : demand.images)
    if (__builtin_add_overflow(demand.bytes, one.bytes(), &demand.bytes)) demand.bytes = ~u64{0};
}

// All levels of a texture at once. `depth` has the faces of a cube when the texture has no target that says
// so.
GlDemand storage(u64 key, const Target& target, i32 levels, GlImage top) {
  GlDemand demand;
  demand.verdict = Verdict::counted;
  demand.key = key;
  demand.immutable = true;
  top.halves = target.halves;
  for (u32 face = 0; face < target.faces; ++face) {
    GlImage one = top;
    for (i32 level = 0; level < std::min(levels, kMostLevels); ++level) {
      demand.images[face * 256 + static_cast<u32>(level)] = one;
      one = one.next();
    }
  }
  sum_up(demand);
  return demand;
}

GlDemand bound_storage(const GlContext& context, u32 target, i32 levels, const GlImage& top) {
  const Target its = target_of(target);
  if (its.proxy) return {};
  return its.binding == 0 ? bad_target() : storage(texture_key(context, its), its, levels, top);
}

// The texture says itself what it is; an OpenGL that has names instead of targets has that question.
GlDemand named_storage(GlContext& context, u32 name, i32 levels, const GlImage& top) {
  GLint target = 0;
  context.collect();
  if (context.api.glGetTextureParameteriv != nullptr)
    context.api.glGetTextureParameteriv(name, GL_TEXTURE_TARGET, &target);
  if (!context.collect() || name == 0) return {};
  const Target its = target_of(static_cast<u32>(target));
  return its.binding == 0 ? bad_target() : storage(GlStorage::key(GlKind::texture, name), its, levels, top);
}

// One level of a texture, whose others stay.
GlDemand level(const GlContext& context, u32 target, i32 number, GlImage made) {
  const Target its = target_of(target);
  if (its.proxy) return {};
  if (its.binding == 0) return bad_target();
  if (number < 0 || number >= kMostLevels) return {};
  GlDemand demand;
  demand.verdict = Verdict::counted;
  demand.key = texture_key(context, its);
  if (const GlThing* const thing = context.storage->find(demand.key); thing != nullptr) {
    if (thing->immutable) return {};  // the driver refuses
    demand.images = thing->images;
  }
  made.halves = its.halves;
  demand.images[its.face * 256 + static_cast<u32>(number)] = made;
  sum_up(demand);
  return demand;
}

GlDemand mipmaps(GlContext& context, u64 key, u32 base) {
  const GlThing* const thing = context.storage->find(key);
  if (thing == nullptr || thing->immutable || base >= kMostLevels) return {};
  GlDemand demand;
  demand.verdict = Verdict::counted;
  demand.key = key;
  demand.images = thing->images;
  for (const auto& [place, one] : thing->images) {
    if (place % 256 != base) continue;
    GlImage below = one;
    for (u32 at = base + 1; at < kMostLevels && !below.is_last(); ++at) {
      below = below.next();
      demand.images[place / 256 * 256 + at] = below;
    }
  }
  sum_up(demand);
  return demand;
}

// Of OpenGL ES 2 a texture has no base level: it is 0.
template <typename Ask>
u32 base_level(GlContext& context, Ask ask) {
  GLint base = 0;
  context.collect();
  ask(&base);
  return context.api.glGetError() == GL_NO_ERROR && base >= 0 ? static_cast<u32>(base) : 0;
}

}  // namespace

GlDemand demand_of(GlContext& context, const wire::gl_args::BufferData& a) {
  return buffer(context, a.target, a.size);
}

GlDemand demand_of(GlContext& context, const wire::gl_args::BufferStorage& a) {
  return buffer(context, a.target, a.size);
}

GlDemand demand_of(GlContext&, const wire::gl_args::NamedBufferData& a) {
  return named_buffer(a.buffer, a.size);
}

GlDemand demand_of(GlContext&, const wire::gl_args::NamedBufferStorage& a) {
  return named_buffer(a.buffer, a.size);
}

GlDemand demand_of(GlContext& context, const wire::gl_args::RenderbufferStorage& a) {
  return renderbuffer(context.bound(GL_RENDERBUFFER_BINDING), 0, a.internalformat, a.width, a.height);
}

GlDemand demand_of(GlContext& context, const wire::gl_args::RenderbufferStorageMultisample& a) {
  return renderbuffer(context.bound(GL_RENDERBUFFER_BINDING), a.samples, a.internalformat, a.width, a.height);
}

GlDemand demand_of(GlContext&, const wire::gl_args::NamedRenderbufferStorage& a) {
  return renderbuffer(a.renderbuffer, 0, a.internalformat, a.width, a.height);
}

GlDemand demand_of(GlContext&, const wire::gl_args::NamedRenderbufferStorageMultisample& a) {
  return renderbuffer(a.renderbuffer, a.samples, a.internalformat, a.width, a.height);
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage1D& a) {
  return level(context, a.target, a.level,
               image(static_cast<u32>(a.internalformat), a.type, a.width, 1, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage2D& a) {
  return level(context, a.target, a.level,
               image(static_cast<u32>(a.internalformat), a.type, a.width, a.height, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage3D& a) {
  return level(context, a.target, a.level,
               image(static_cast<u32>(a.internalformat), a.type, a.width, a.height, a.depth, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::CopyTexImage1D& a) {
  return level(context, a.target, a.level, image(a.internalformat, 0, a.width, 1, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::CopyTexImage2D& a) {
  return level(context, a.target, a.level, image(a.internalformat, 0, a.width, a.height, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::CompressedTexImage1D& a) {
  return level(context, a.target, a.level, image(a.internalformat, 0, a.width, 1, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::CompressedTexImage2D& a) {
  return level(context, a.target, a.level, image(a.internalformat, 0, a.width, a.height, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::CompressedTexImage3D& a) {
  return level(context, a.target, a.level, image(a.internalformat, 0, a.width, a.height, a.depth, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage2DMultisample& a) {
  return level(context, a.target, 0, image(a.internalformat, 0, a.width, a.height, 1, a.samples));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexImage3DMultisample& a) {
  return level(context, a.target, 0, image(a.internalformat, 0, a.width, a.height, a.depth, a.samples));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage1D& a) {
  return bound_storage(context, a.target, a.levels, image(a.internalformat, 0, a.width, 1, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage2D& a) {
  return bound_storage(context, a.target, a.levels, image(a.internalformat, 0, a.width, a.height, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage3D& a) {
  return bound_storage(context, a.target, a.levels,
                       image(a.internalformat, 0, a.width, a.height, a.depth, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage2DMultisample& a) {
  return bound_storage(context, a.target, 1, image(a.internalformat, 0, a.width, a.height, 1, a.samples));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TexStorage3DMultisample& a) {
  return bound_storage(context, a.target, 1,
                       image(a.internalformat, 0, a.width, a.height, a.depth, a.samples));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage1D& a) {
  return named_storage(context, a.texture, a.levels, image(a.internalformat, 0, a.width, 1, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage2D& a) {
  return named_storage(context, a.texture, a.levels, image(a.internalformat, 0, a.width, a.height, 1, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage3D& a) {
  return named_storage(context, a.texture, a.levels,
                       image(a.internalformat, 0, a.width, a.height, a.depth, 0));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage2DMultisample& a) {
  return named_storage(context, a.texture, 1, image(a.internalformat, 0, a.width, a.height, 1, a.samples));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::TextureStorage3DMultisample& a) {
  return named_storage(context, a.texture, 1,
                       image(a.internalformat, 0, a.width, a.height, a.depth, a.samples));
}

GlDemand demand_of(GlContext& context, const wire::gl_args::GenerateMipmap& a) {
  const Target its = target_of(a.target);
  if (its.binding == 0 || its.proxy) return bad_target();
  const u32 base = base_level(context, [&](GLint* level) {
    if (context.api.glGetTexParameteriv != nullptr)
      context.api.glGetTexParameteriv(a.target, GL_TEXTURE_BASE_LEVEL, level);
  });
  return mipmaps(context, texture_key(context, its), base);
}

GlDemand demand_of(GlContext& context, const wire::gl_args::GenerateTextureMipmap& a) {
  const u32 base = base_level(context, [&](GLint* level) {
    if (context.api.glGetTextureParameteriv != nullptr)
      context.api.glGetTextureParameteriv(a.texture, GL_TEXTURE_BASE_LEVEL, level);
  });
  return mipmaps(context, GlStorage::key(GlKind::texture, a.texture), base);
}

}  // namespace gpupool::worker
