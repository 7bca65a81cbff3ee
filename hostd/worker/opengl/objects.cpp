// Mapped buffers and syncs. No buffer of the driver's stays mapped: each message maps, copies and unmaps.
#include "gl_dispatch.hpp"  // generated
#include "wire/cpp/gl_sizes.hpp"

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;

// Answers [the mapping can be had: 8 bytes] and, unless the program overwrites everything, what is in it.
template <typename Map, typename Unmap>
void fetch(GlContext& context, GlCommand& command, i64 length, GLbitfield access, Map map, Unmap unmap) {
  command.finish();
  command.must_answer();
  if (length <= 0 || static_cast<u64>(length) > wire::kMostGlData ||
      (access & (GL_MAP_PERSISTENT_BIT | GL_MAP_COHERENT_BIT)) != 0)
    return context.refuse(command);
  const auto bytes = static_cast<u64>(length);
  const bool in_window = !command.window().empty();
  if (bytes + 8 > (in_window ? command.window().size() : command.room_left()))
    throw wire::ProtocolError("too little room for a mapped buffer");
  constexpr GLbitfield kOverwrites =
      GL_MAP_INVALIDATE_RANGE_BIT | GL_MAP_INVALIDATE_BUFFER_BIT | GL_MAP_FLUSH_EXPLICIT_BIT;
  const bool content = (access & kOverwrites) == 0;
  // As the program asks, so that the driver judges it. What it may only write is read all the same.
  const void* mapped = map(access);
  if (mapped == nullptr) return;
  if (content && (access & GL_MAP_READ_BIT) == 0) {
    unmap();
    mapped = map(GL_MAP_READ_BIT);
    if (mapped == nullptr) return;
  }
  const u64 answered = 8 + (content ? bytes : 0);
  if (in_window) {
    std::memset(command.window().data(), 0, 8);
    if (content) std::memcpy(command.window().data() + 8, mapped, bytes);
    command.answered_in_window(answered);
  } else {
    command.put(u64{1});
    if (content) command.put_bytes(mapped, bytes);
  }
  unmap();
}

template <typename Map, typename Unmap>
void store(GlContext& context, GlCommand& command, i64 length, Map map, Unmap unmap) {
  const u64 bytes = wire::gl_sizes::elements(length, 1, 1);
  const u8* const content = command.array<u8>(bytes, bytes, true);
  command.finish();
  if (bytes == 0) return context.refuse(command);
  void* const mapped = map(GL_MAP_WRITE_BIT | GL_MAP_INVALIDATE_RANGE_BIT);
  if (mapped == nullptr) return;
  std::memcpy(mapped, content, bytes);
  unmap();
}

// Bytes of a buffer, right into the window where they are many.
template <typename Read>
void read_buffer(GlContext& context, GlCommand& command, i64 size, Read read) {
  command.finish();
  command.must_answer();
  const u64 bytes = wire::gl_sizes::elements(size, 1, 1);
  const bool in_window = !command.window().empty();
  if (bytes > (in_window ? command.window().size() : command.room_left()))
    throw wire::ProtocolError("too little room for a buffer's bytes");
  std::vector<u8> small(in_window ? 0 : bytes);
  context.collect();
  read(in_window ? command.window().data() : small.data());
  if (!context.collect()) return;
  if (in_window)
    command.answered_in_window(bytes);
  else
    command.put_bytes(small.data(), small.size());
}

}  // namespace

void handle_glMapBufferRange(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::MapBufferRange>();
  if (context.api.glMapBufferRange == nullptr || context.api.glUnmapBuffer == nullptr)
    return context.refuse(command);
  fetch(
      context, command, a.length, a.access,
      [&](GLbitfield access) { return context.api.glMapBufferRange(a.target, a.offset, a.length, access); },
      [&] { context.api.glUnmapBuffer(a.target); });
}

void handle_glMapNamedBufferRange(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::MapNamedBufferRange>();
  if (context.api.glMapNamedBufferRange == nullptr || context.api.glUnmapNamedBuffer == nullptr)
    return context.refuse(command);
  fetch(
      context, command, a.length, a.access,
      [&](GLbitfield access) {
        return context.api.glMapNamedBufferRange(a.buffer, a.offset, a.length, access);
      },
      [&] { context.api.glUnmapNamedBuffer(a.buffer); });
}

void handle_glFlushMappedBufferRange(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::FlushMappedBufferRange>();
  if (context.api.glMapBufferRange == nullptr || context.api.glUnmapBuffer == nullptr)
    return context.refuse(command);
  store(
      context, command, a.length,
      [&](GLbitfield access) { return context.api.glMapBufferRange(a.target, a.offset, a.length, access); },
      [&] { context.api.glUnmapBuffer(a.target); });
}

void handle_glFlushMappedNamedBufferRange(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::FlushMappedNamedBufferRange>();
  if (context.api.glMapNamedBufferRange == nullptr || context.api.glUnmapNamedBuffer == nullptr)
    return context.refuse(command);
  store(
      context, command, a.length,
      [&](GLbitfield access) {
        return context.api.glMapNamedBufferRange(a.buffer, a.offset, a.length, access);
      },
      [&] { context.api.glUnmapNamedBuffer(a.buffer); });
}

void handle_glGetBufferSubData(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::GetBufferSubData>();
  if (context.api.glGetBufferSubData == nullptr) return context.refuse(command);
  read_buffer(context, command, a.size,
              [&](void* data) { context.api.glGetBufferSubData(a.target, a.offset, a.size, data); });
}

void handle_glGetNamedBufferSubData(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::GetNamedBufferSubData>();
  if (context.api.glGetNamedBufferSubData == nullptr) return context.refuse(command);
  read_buffer(context, command, a.size,
              [&](void* data) { context.api.glGetNamedBufferSubData(a.buffer, a.offset, a.size, data); });
}

void handle_glFenceSync(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::GlFence>();
  command.finish();
  if (context.api.glFenceSync == nullptr) return context.refuse(command);
  if (a.sync == 0 || context.syncs->contains(a.sync))
    throw wire::ProtocolError("a sync's name that is in use");
  if (context.syncs->size() >= wire::kMostGlSyncs) return context.fail(GL_OUT_OF_MEMORY);
  if (const GLsync made = context.api.glFenceSync(a.condition, a.flags); made != nullptr)
    context.syncs->emplace(a.sync, made);
}

namespace {

GLsync sync_of(const GlContext& context, GLsync named) {
  const auto found = context.syncs->find(reinterpret_cast<u64>(named));
  return found == context.syncs->end() ? nullptr : found->second;
}

}  // namespace

void handle_glDeleteSync(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::DeleteSync>();
  command.finish();
  const GLsync sync = sync_of(context, a.sync);
  if (sync == nullptr) return context.fail(GL_INVALID_VALUE);
  context.api.glDeleteSync(sync);
  context.syncs->erase(reinterpret_cast<u64>(a.sync));
}

// Never waits: the client asks again.
void handle_glClientWaitSync(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::ClientWaitSync>();
  command.finish();
  command.must_answer();
  const GLsync sync = sync_of(context, a.sync);
  if (sync == nullptr) return context.fail(GL_INVALID_VALUE);
  command.put(context.api.glClientWaitSync(sync, a.flags, 0));
}

void handle_glWaitSync(GlContext& context, GlCommand& command) {
  const auto a = command.arguments<wire::gl_args::WaitSync>();
  command.finish();
  const GLsync sync = sync_of(context, a.sync);
  if (sync == nullptr) return context.fail(GL_INVALID_VALUE);
  context.api.glWaitSync(sync, a.flags, a.timeout);
}

}  // namespace gpupool::worker
