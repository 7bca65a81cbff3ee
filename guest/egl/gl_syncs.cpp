// Syncs. The client names them, so that making one waits for nothing. A wait asks the worker again and again
// and naps in between: the worker's one thread must not wait for the GPU on behalf of one program's thread.
#include <time.h>

#include <atomic>

#include "gl_client.hpp"
#include "guest/egl/context.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest::gl_api {
namespace {

constexpr u64 kAskEveryNs = 20'000;
constexpr u64 kSeldomNs = 500'000;

std::atomic<u64> g_next_sync{1};

GLenum ask_once(Context& context, GLsync sync, GLbitfield flags) {
  auto* const a = context.begin<wire::gl_args::ClientWaitSync>(wire::GlFunction::glClientWaitSync);
  a->sync = sync;
  a->flags = flags;
  a->timeout = 0;
  Answer answer = context.ask(16);
  const auto result = answer.get<GLenum>();
  return result == 0 ? GLenum{GL_WAIT_FAILED} : result;
}

}  // namespace

GLsync glFenceSync(GLenum condition, GLbitfield flags) {
  Context* const context = current_context();
  if (context == nullptr) return nullptr;
  auto* const a = context->begin<wire::GlFence>(wire::GlFunction::glFenceSync);
  a->sync = g_next_sync.fetch_add(1, std::memory_order_relaxed);
  a->condition = condition;
  a->flags = flags;
  auto* const sync = reinterpret_cast<GLsync>(a->sync);
  context->end(true);
  return sync;
}

void glDeleteSync(GLsync sync) {
  Context* const context = current_context();
  if (context == nullptr || sync == nullptr) return;
  context->begin<wire::gl_args::DeleteSync>(wire::GlFunction::glDeleteSync)->sync = sync;
  context->end(false);
}

GLboolean glIsSync(GLsync sync) {
  const auto name = reinterpret_cast<u64>(sync);
  return name != 0 && name < g_next_sync.load(std::memory_order_relaxed) ? 1 : 0;
}

GLenum glClientWaitSync(GLsync sync, GLbitfield flags, GLuint64 timeout) {
  Context* const context = current_context();
  if (context == nullptr) return GL_WAIT_FAILED;
  const u64 start = wire::monotonic_ns();
  GLenum result = ask_once(*context, sync, flags);
  if (result != GL_TIMEOUT_EXPIRED || timeout == 0) return result;
  for (u64 nap = kAskEveryNs; result == GL_TIMEOUT_EXPIRED; nap = nap * 2 < kSeldomNs ? nap * 2 : kSeldomNs) {
    if (wire::monotonic_ns() - start >= timeout) return result;
    const timespec pause{0, static_cast<long>(nap)};
    nanosleep(&pause, nullptr);
    result = ask_once(*context, sync, 0);
  }
  return result == GL_ALREADY_SIGNALED ? GLenum{GL_CONDITION_SATISFIED} : result;
}

void glWaitSync(GLsync sync, GLbitfield flags, GLuint64 timeout) {
  Context* const context = current_context();
  if (context == nullptr) return;
  auto* const a = context->begin<wire::gl_args::WaitSync>(wire::GlFunction::glWaitSync);
  a->sync = sync;
  a->flags = flags;
  a->timeout = timeout;
  context->end(false);
}

}  // namespace gpupool::guest::gl_api
