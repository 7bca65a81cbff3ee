// Mapped buffers. The program gets a copy: fetched from the host unless it says that it will overwrite
// everything, and sent back when it is unmapped, or as it is flushed. The host's buffer is never left mapped.
#include <algorithm>

#include "gl_client.hpp"
#include "guest/egl/context.hpp"
#include "guest/runtime/log.hpp"
#include "wire/cpp/gl_sizes.hpp"

namespace gpupool::guest::gl_api {
namespace {

using Mapping = Context::Mapping;

// A mapping by name has no target, one by target the name that is bound there.
Mapping* find(Context& context, GLenum target, GLuint buffer) {
  const auto fits = [&](const auto& each) {
    return each->target == target && (each->buffer == buffer || each->buffer == 0);
  };
  const auto found = std::ranges::find_if(context.mappings, fits);
  return found == context.mappings.end() ? nullptr : found->get();
}

GLuint bound(const Context& context, GLenum target) {
  const auto found = context.bindings.find(target);
  // The element buffer belongs to the vertex array: what was bound last need not be bound now.
  return found == context.bindings.end() || target == GL_ELEMENT_ARRAY_BUFFER ? 0 : found->second;
}

// `Arguments` are those of glMapBufferRange or glMapNamedBufferRange; `fill` names the buffer.
template <typename Arguments, typename Fill>
void* map(wire::GlFunction function, GLenum target, GLuint buffer, GLintptr offset, GLsizeiptr length,
          GLbitfield access, Fill fill) {
  Context* const context = current_context();
  if (context == nullptr) return nullptr;
  if ((access & (GL_MAP_PERSISTENT_BIT | GL_MAP_COHERENT_BIT)) != 0) {
    static std::atomic<bool> said{false};
    refuse_unsupported("glMapBufferRange", "a persistent mapping would have to be the host's memory", said);
    return nullptr;
  }
  if (find(*context, target, buffer) != nullptr) {
    context->fail(GL_INVALID_OPERATION);
    return nullptr;
  }
  if (length <= 0 || static_cast<u64>(length) > wire::kMostGlData) {
    context->fail(length <= 0 ? GL_INVALID_VALUE : GL_OUT_OF_MEMORY);
    return nullptr;
  }
  auto mapping = std::make_unique<Mapping>(Mapping{target, buffer, offset, access, {}});
  // One element more: an answer of nothing is a refusal.
  auto* const a = context->begin<Arguments>(function);
  fill(*a);
  a->offset = offset;
  a->length = length;
  a->access = access;
  bool mapped = false;
  const auto bytes = static_cast<u64>(length);
  context->ask_large(bytes + 8, [&](const u8* from, u64 size) {
    mapped = size >= 8;
    mapping->bytes.resize(bytes);
    if (size == bytes + 8) std::memcpy(mapping->bytes.data(), from + 8, bytes);
  });
  if (!mapped) return nullptr;
  context->mappings.push_back(std::move(mapping));
  return context->mappings.back()->bytes.data();
}

// Sends [offset, +length) of the mapping, relative to its beginning.
template <typename Arguments, typename Fill>
void send(Context& context, wire::GlFunction function, const Mapping& mapping, u64 offset, u64 length,
          Fill fill) {
  auto* const a = context.begin<Arguments>(function);
  fill(*a);
  a->offset = mapping.offset + static_cast<i64>(offset);
  a->length = static_cast<GLsizeiptr>(length);
  context.content(mapping.bytes.data() + offset, length, 1);
  context.end(false);
}

template <typename Arguments, typename Fill>
GLboolean unmap(wire::GlFunction function, GLenum target, GLuint buffer, Fill fill) {
  Context* const context = current_context();
  if (context == nullptr) return 0;
  Mapping* const mapping = find(*context, target, buffer);
  if (mapping == nullptr) {
    context->fail(GL_INVALID_OPERATION);
    return 0;
  }
  if ((mapping->access & GL_MAP_WRITE_BIT) != 0 && (mapping->access & GL_MAP_FLUSH_EXPLICIT_BIT) == 0)
    send<Arguments>(*context, function, *mapping, 0, mapping->bytes.size(), fill);
  std::erase_if(context->mappings, [&](const auto& each) { return each.get() == mapping; });
  return 1;
}

template <typename Arguments, typename Fill>
void flush_range(wire::GlFunction function, GLenum target, GLuint buffer, GLintptr offset, GLsizeiptr length,
                 Fill fill) {
  Context* const context = current_context();
  if (context == nullptr) return;
  const Mapping* const mapping = find(*context, target, buffer);
  if (mapping == nullptr || (mapping->access & GL_MAP_FLUSH_EXPLICIT_BIT) == 0)
    return context->fail(GL_INVALID_OPERATION);
  const u64 size = mapping->bytes.size();
  if (offset < 0 || length < 0 || static_cast<u64>(offset) > size ||
      static_cast<u64>(length) > size - static_cast<u64>(offset))
    return context->fail(GL_INVALID_VALUE);
  if (length != 0)
    send<Arguments>(*context, function, *mapping, static_cast<u64>(offset), static_cast<u64>(length), fill);
}

GLbitfield range_access(GLenum access) {
  switch (access) {
    case GL_READ_ONLY:
      return GL_MAP_READ_BIT;
    case GL_WRITE_ONLY:
      return GL_MAP_WRITE_BIT;
    case GL_READ_WRITE:
      return GL_MAP_READ_BIT | GL_MAP_WRITE_BIT;
    default:
      return 0;
  }
}

}  // namespace

void* glMapBufferRange(GLenum target, GLintptr offset, GLsizeiptr length, GLbitfield access) {
  const Context* const context = current_context();
  return context == nullptr ? nullptr
                            : map<wire::gl_args::MapBufferRange>(wire::GlFunction::glMapBufferRange, target,
                                                                 bound(*context, target), offset, length,
                                                                 access, [&](auto& a) { a.target = target; });
}
void* glMapNamedBufferRange(GLuint buffer, GLintptr offset, GLsizeiptr length, GLbitfield access) {
  return map<wire::gl_args::MapNamedBufferRange>(wire::GlFunction::glMapNamedBufferRange, 0, buffer, offset,
                                                 length, access, [&](auto& a) { a.buffer = buffer; });
}

void* glMapBuffer(GLenum target, GLenum access) {
  GLint size = 0;
  glGetBufferParameteriv(target, GL_BUFFER_SIZE, &size);
  return glMapBufferRange(target, 0, size, range_access(access));
}
void* glMapNamedBuffer(GLuint buffer, GLenum access) {
  GLint size = 0;
  glGetNamedBufferParameteriv(buffer, GL_BUFFER_SIZE, &size);
  return glMapNamedBufferRange(buffer, 0, size, range_access(access));
}

namespace {

void pointer_of(GLenum target, GLuint buffer, GLenum pname, void** params) {
  Context* const context = current_context();
  if (context == nullptr || params == nullptr) return;
  if (pname != GL_BUFFER_MAP_POINTER) return context->fail(GL_INVALID_ENUM);
  Mapping* const mapping = find(*context, target, buffer);
  *params = mapping == nullptr ? nullptr : mapping->bytes.data();
}

}  // namespace

void glGetBufferPointerv(GLenum target, GLenum pname, void** params) {
  const Context* const context = current_context();
  if (context != nullptr) pointer_of(target, bound(*context, target), pname, params);
}
void glGetNamedBufferPointerv(GLuint buffer, GLenum pname, void** params) {
  pointer_of(0, buffer, pname, params);
}

GLboolean glUnmapBuffer(GLenum target) {
  const Context* const context = current_context();
  return context == nullptr ? GLboolean{0}
                            : unmap<wire::gl_args::FlushMappedBufferRange>(
                                  wire::GlFunction::glFlushMappedBufferRange, target, bound(*context, target),
                                  [&](auto& a) { a.target = target; });
}
GLboolean glUnmapNamedBuffer(GLuint buffer) {
  return unmap<wire::gl_args::FlushMappedNamedBufferRange>(wire::GlFunction::glFlushMappedNamedBufferRange, 0,
                                                           buffer, [&](auto& a) { a.buffer = buffer; });
}

void glFlushMappedBufferRange(GLenum target, GLintptr offset, GLsizeiptr length) {
  const Context* const context = current_context();
  if (context != nullptr)
    flush_range<wire::gl_args::FlushMappedBufferRange>(wire::GlFunction::glFlushMappedBufferRange, target,
                                                       bound(*context, target), offset, length,
                                                       [&](auto& a) { a.target = target; });
}
void glFlushMappedNamedBufferRange(GLuint buffer, GLintptr offset, GLsizeiptr length) {
  flush_range<wire::gl_args::FlushMappedNamedBufferRange>(wire::GlFunction::glFlushMappedNamedBufferRange, 0,
                                                          buffer, offset, length,
                                                          [&](auto& a) { a.buffer = buffer; });
}

namespace {

template <typename Arguments, typename Fill>
void get_sub_data(wire::GlFunction function, GLintptr offset, GLsizeiptr size, void* data, Fill fill) {
  Context* const context = current_context();
  if (context == nullptr) return;
  if (size < 0 || offset < 0) return context->fail(GL_INVALID_VALUE);
  if (size == 0 || data == nullptr) return;
  auto* const a = context->begin<Arguments>(function);
  fill(*a);
  a->offset = offset;
  a->size = size;
  a->data = 0;
  context->ask_large(static_cast<u64>(size), [&](const u8* from, u64 sent) {
    if (sent == static_cast<u64>(size)) std::memcpy(data, from, sent);
  });
}

}  // namespace

void glGetBufferSubData(GLenum target, GLintptr offset, GLsizeiptr size, void* data) {
  get_sub_data<wire::gl_args::GetBufferSubData>(wire::GlFunction::glGetBufferSubData, offset, size, data,
                                                [&](auto& a) { a.target = target; });
}
void glGetNamedBufferSubData(GLuint buffer, GLintptr offset, GLsizeiptr size, void* data) {
  get_sub_data<wire::gl_args::GetNamedBufferSubData>(wire::GlFunction::glGetNamedBufferSubData, offset, size,
                                                     data, [&](auto& a) { a.buffer = buffer; });
}

}  // namespace gpupool::guest::gl_api
