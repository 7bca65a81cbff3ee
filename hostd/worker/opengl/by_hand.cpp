// Handlers of commands that need more than a look at their arguments. What they guard against: an offset into
// a buffer that is not bound would be an address of this process.
#include <algorithm>
#include <utility>

#include "gl_dispatch.hpp"  // generated
#include "hostd/worker/opengl/storage.hpp"
#include "wire/cpp/gl_sizes.hpp"

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;

// A vertex attribute without a buffer must stand at offset 0: then what a draw can reach of it is at the very
// beginning of the address space, where nothing is.
bool may_point(const GlContext& context, u64 pointer) {
  return pointer == 0 || context.bound(GL_ARRAY_BUFFER_BINDING) != 0;
}

const void* as_pointer(u64 offset) {
  return reinterpret_cast<const void*>(offset);
}

bool offsets_fit(const GLuint* buffers, const GLintptr* offsets, u64 count) {
  for (u64 i = 0; i < count; ++i)
    if (offsets != nullptr && offsets[i] != 0 && (buffers == nullptr || buffers[i] == 0)) return false;
  return true;
}

// Deleting a buffer takes it out of the current vertex array, where the offset would stay.
void detach(GlContext& context, const GLuint* names, u64 count) {
  if (context.api.glBindVertexBuffer == nullptr || context.api.glGetIntegeri_v == nullptr) return;
  GLint bindings = 0;
  context.api.glGetIntegerv(GL_MAX_VERTEX_ATTRIB_BINDINGS, &bindings);
  for (GLint i = 0; i < bindings; ++i) {
    GLint bound = 0;
    context.api.glGetIntegeri_v(GL_VERTEX_BINDING_BUFFER, static_cast<GLuint>(i), &bound);
    if (bound == 0 || std::find(names, names + count, static_cast<GLuint>(bound)) == names + count) continue;
    context.api.glBindVertexBuffer(static_cast<GLuint>(i), 0, 0, 16);
  }
}

}  // namespace

void handle_glVertexAttribPointer(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::VertexAttribPointer>();
  command.finish();
  if (!may_point(context, a.pointer)) return context.refuse(command);
  context.api.glVertexAttribPointer(a.index, a.size, a.type, a.normalized, a.stride, as_pointer(a.pointer));
}

void handle_glVertexAttribIPointer(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::VertexAttribIPointer>();
  command.finish();
  if (context.api.glVertexAttribIPointer == nullptr || !may_point(context, a.pointer))
    return context.refuse(command);
  context.api.glVertexAttribIPointer(a.index, a.size, a.type, a.stride, as_pointer(a.pointer));
}

void handle_glVertexAttribLPointer(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::VertexAttribLPointer>();
  command.finish();
  if (context.api.glVertexAttribLPointer == nullptr || !may_point(context, a.pointer))
    return context.refuse(command);
  context.api.glVertexAttribLPointer(a.index, a.size, a.type, a.stride, as_pointer(a.pointer));
}

void handle_glBindVertexBuffer(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::BindVertexBuffer>();
  command.finish();
  if (context.api.glBindVertexBuffer == nullptr || !offsets_fit(&a.buffer, &a.offset, 1))
    return context.refuse(command);
  context.api.glBindVertexBuffer(a.bindingindex, a.buffer, a.offset, a.stride);
}

void handle_glVertexArrayVertexBuffer(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::VertexArrayVertexBuffer>();
  command.finish();
  if (context.api.glVertexArrayVertexBuffer == nullptr || !offsets_fit(&a.buffer, &a.offset, 1))
    return context.refuse(command);
  context.api.glVertexArrayVertexBuffer(a.vaobj, a.bindingindex, a.buffer, a.offset, a.stride);
}

void handle_glBindVertexBuffers(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::BindVertexBuffers>();
  const u64 count = wire::gl_sizes::elements(a.count, 1, 1);
  const auto* const buffers = command.array<GLuint>(a.buffers_count, count);
  const auto* const offsets = command.array<GLintptr>(a.offsets_count, count);
  const auto* const strides = command.array<GLsizei>(a.strides_count, count);
  command.finish();
  const bool whole = buffers == nullptr || (offsets != nullptr && strides != nullptr);
  if (context.api.glBindVertexBuffers == nullptr || !whole || !offsets_fit(buffers, offsets, count))
    return context.refuse(command);
  context.api.glBindVertexBuffers(a.first, a.count, buffers, offsets, strides);
}

void handle_glVertexArrayVertexBuffers(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::VertexArrayVertexBuffers>();
  const u64 count = wire::gl_sizes::elements(a.count, 1, 1);
  const auto* const buffers = command.array<GLuint>(a.buffers_count, count);
  const auto* const offsets = command.array<GLintptr>(a.offsets_count, count);
  const auto* const strides = command.array<GLsizei>(a.strides_count, count);
  command.finish();
  const bool whole = buffers == nullptr || (offsets != nullptr && strides != nullptr);
  if (context.api.glVertexArrayVertexBuffers == nullptr || !whole || !offsets_fit(buffers, offsets, count))
    return context.refuse(command);
  context.api.glVertexArrayVertexBuffers(a.vaobj, a.first, a.count, buffers, offsets, strides);
}

void handle_glDeleteBuffers(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::DeleteBuffers>();
  const u64 count = wire::gl_sizes::elements(a.n, 1, 1);
  const auto* const names = command.array<GLuint>(a.buffers_count, count);
  command.finish();
  if (names != nullptr) detach(context, names, count);
  if (names != nullptr || a.n <= 0) context.api.glDeleteBuffers(a.n, names);
  if (names != nullptr) forget_names(context, GlKind::buffer, names, count);
}

void handle_glDeleteTextures(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::DeleteTextures>();
  const u64 count = wire::gl_sizes::elements(a.n, 1, 1);
  const auto* const names = command.array<GLuint>(a.textures_count, count);
  command.finish();
  if (names != nullptr || a.n <= 0) context.api.glDeleteTextures(a.n, names);
  if (names != nullptr) forget_names(context, GlKind::texture, names, count);
}

void handle_glDeleteRenderbuffers(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::DeleteRenderbuffers>();
  const u64 count = wire::gl_sizes::elements(a.n, 1, 1);
  const auto* const names = command.array<GLuint>(a.renderbuffers_count, count);
  command.finish();
  if (context.api.glDeleteRenderbuffers == nullptr) return context.refuse(command);
  if (names != nullptr || a.n <= 0) context.api.glDeleteRenderbuffers(a.n, names);
  if (names != nullptr) forget_names(context, GlKind::renderbuffer, names, count);
}

// A view takes nothing, and its texture's memory lives as long as it does.
void handle_glTextureView(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::TextureView>();
  command.finish();
  if (context.api.glTextureView == nullptr) return context.refuse(command);
  context.collect();
  context.api.glTextureView(a.texture, a.target, a.origtexture, a.internalformat, a.minlevel, a.numlevels,
                            a.minlayer, a.numlayers);
  const u64 viewed = GlStorage::key(GlKind::texture, a.origtexture);
  if (!context.collect() || context.storage->find(viewed) == nullptr) return;
  const std::shared_ptr<GlThing> thing = (*context.storage)[viewed];
  (*context.storage)[GlStorage::key(GlKind::texture, a.texture)] = thing;
}

void handle_glDrawElementsIndirect(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::DrawElementsIndirect>();
  command.finish();
  if (context.api.glDrawElementsIndirect == nullptr || context.bound(GL_DRAW_INDIRECT_BUFFER_BINDING) == 0 ||
      context.bound(GL_ELEMENT_ARRAY_BUFFER_BINDING) == 0)
    return context.refuse(command);
  context.api.glDrawElementsIndirect(a.mode, a.type, as_pointer(a.indirect));
}

void handle_glMultiDrawElementsIndirect(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::MultiDrawElementsIndirect>();
  command.finish();
  if (context.api.glMultiDrawElementsIndirect == nullptr ||
      context.bound(GL_DRAW_INDIRECT_BUFFER_BINDING) == 0 ||
      context.bound(GL_ELEMENT_ARRAY_BUFFER_BINDING) == 0)
    return context.refuse(command);
  context.api.glMultiDrawElementsIndirect(a.mode, a.type, as_pointer(a.indirect), a.drawcount, a.stride);
}

// What images hold in memory is computed from these; those of compressed blocks would change how much the
// driver reads of a compressed image, which goes by the size that the program says.
void handle_glPixelStorei(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::PixelStorei>();
  command.finish();
  switch (a.pname) {
    case GL_UNPACK_COMPRESSED_BLOCK_WIDTH:
    case GL_UNPACK_COMPRESSED_BLOCK_HEIGHT:
    case GL_UNPACK_COMPRESSED_BLOCK_DEPTH:
    case GL_UNPACK_COMPRESSED_BLOCK_SIZE:
    case GL_PACK_COMPRESSED_BLOCK_WIDTH:
    case GL_PACK_COMPRESSED_BLOCK_HEIGHT:
    case GL_PACK_COMPRESSED_BLOCK_DEPTH:
    case GL_PACK_COMPRESSED_BLOCK_SIZE:
      return context.refuse(command);
    default:
      context.api.glPixelStorei(a.pname, a.param);
  }
}

void handle_glGetError(GlContext& context, GlCommand& command) {
  command.arguments<wire::gl_args::GetError>();
  command.finish();
  command.put(context.error != 0 ? std::exchange(context.error, 0u) : context.api.glGetError());
}

void handle_glFinish(GlContext& context, GlCommand& command) {
  command.arguments<wire::gl_args::Finish>();
  command.finish();
  context.api.glFinish();
}

// A string of the driver's, or the names of its extensions, a line each.
void handle_glGetString(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::GetString>();
  command.finish();
  std::string text;
  if (a.name == GL_EXTENSIONS && context.api.glGetStringi != nullptr) {
    GLint count = 0;
    context.api.glGetIntegerv(GL_NUM_EXTENSIONS, &count);
    for (GLint i = 0; i < count; ++i) {
      const auto* const name = context.api.glGetStringi(GL_EXTENSIONS, static_cast<GLuint>(i));
      if (name != nullptr) text += std::string(reinterpret_cast<const char*>(name)) + "\n";
    }
  } else if (const auto* const one = context.api.glGetString(a.name); one != nullptr) {
    text = reinterpret_cast<const char*>(one);
  }
  command.put_bytes(text.data(), std::min<u64>(text.size(), command.room_left()));
}

}  // namespace gpupool::worker
