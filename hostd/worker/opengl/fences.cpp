// What the GPU has not done yet: fences behind batches, for the compute lease, and answers that wait for it.
//
// Polling a sync needs a context that shares it to be current, which is dear to change: so one that waits is
// looked at for a while before the next one is.
#include <algorithm>
#include <utility>

#include "gl_messages.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/opengl/server.hpp"
#include "hostd/worker/senders.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;

constexpr u64 kSpinNs = 2'000'000;  // an answer that takes longer is not worth a core
constexpr u64 kNapNs = 50'000;
constexpr u64 kShortNs = 3'000'000;  // above it a fence costs next to nothing

template <typename Arguments>
Arguments peek(wire::CommandHead head, std::span<const u8> bytes) {
  return GlCommand(head, bytes).arguments<Arguments>();
}

bool asks_result(u32 question) {
  return question == GL_QUERY_RESULT;
}

// A mapping that has to show what is there.
bool shows(u32 access) {
  return (access &
          (GL_MAP_INVALIDATE_RANGE_BIT | GL_MAP_INVALIDATE_BUFFER_BIT | GL_MAP_UNSYNCHRONIZED_BIT)) == 0;
}

}  // namespace

bool GlServer::waits_for_gpu(wire::CommandHead head, std::span<const u8> bytes) {
  using enum wire::GlFunction;
  switch (static_cast<wire::GlFunction>(head.function)) {
    case glFinish:
    case glReadPixels:
    case glGetTexImage:
    case glGetBufferSubData:
    case glGetNamedBufferSubData:
      return true;
    case glMapBufferRange:
      return shows(peek<wire::gl_args::MapBufferRange>(head, bytes).access);
    case glMapNamedBufferRange:
      return shows(peek<wire::gl_args::MapNamedBufferRange>(head, bytes).access);
    case glGetQueryObjectiv:
      return asks_result(peek<wire::gl_args::GetQueryObjectiv>(head, bytes).pname);
    case glGetQueryObjectuiv:
      return asks_result(peek<wire::gl_args::GetQueryObjectuiv>(head, bytes).pname);
    case glGetQueryObjecti64v:
      return asks_result(peek<wire::gl_args::GetQueryObjecti64v>(head, bytes).pname);
    case glGetQueryObjectui64v:
      return asks_result(peek<wire::gl_args::GetQueryObjectui64v>(head, bytes).pname);
    default:
      return false;
  }
}

GLsync GlServer::sync_behind() {
  if (api_.glFenceSync == nullptr || api_.glClientWaitSync == nullptr || api_.glDeleteSync == nullptr)
    return nullptr;
  const GLsync made = api_.glFenceSync(GL_SYNC_GPU_COMMANDS_COMPLETE, 0);
  // Without it the driver may keep what it has until somebody waits.
  api_.glFlush();
  return made;
}

// True also where nothing could ever be said: the context is lost.
bool GlServer::is_passed(u32 context, GLsync sync, u64 wait_ns) {
  if (use(context) == nullptr) return true;
  if (api_.glClientWaitSync(sync, 0, wait_ns) == GL_TIMEOUT_EXPIRED) return false;
  api_.glDeleteSync(sync);
  return true;
}

u64 GlServer::fence() {
  ++newest_fence_;
  drew_ = false;
  for (auto& [index, context] : contexts_) {
    if (!std::exchange(context.drew, false) || use(index) == nullptr) continue;
    if (const GLsync sync = sync_behind(); sync != nullptr)
      fences_.push_back({newest_fence_, index, sync});
    else
      api_.glFinish();
  }
  return newest_fence_;
}

bool GlServer::passed(u64 fence) {
  while (!fences_.empty() && fences_.front().number <= fence) {
    if (!is_passed(fences_.front().context, fences_.front().sync, 0)) return false;
    fences_.pop_front();
  }
  return true;
}

// Its work would otherwise go on without anybody's knowing.
void GlServer::settle(u32 index) {
  const GlContext& context = contexts_.at(index);
  if (context.waits) throw wire::ProtocolError("a context is destroyed while its thread waits");
  const auto of_it = [&](const Fence& fence) { return fence.context == index; };
  if (!context.drew && std::ranges::none_of(fences_, of_it)) return;
  if (use(index) != nullptr) api_.glFinish();
  std::erase_if(fences_, [&](const Fence& fence) {
    if (!of_it(fence)) return false;
    if (current_ == index) api_.glDeleteSync(fence.sync);
    return true;
  });
}

// A fence before the driver's own wait is a second wait: 15 of 43 us of a small picture on an H100. Not while
// the GPU goes by leases, which are given back between messages. Work that waits for CUDA's, by a buffer of
// both, may wait for a message that is yet to come: a host function's end.
bool GlServer::may_wait(const Request& request) const {
  if (last_wait_ns_ >= kShortNs || !g_senders.is_alone(request.ticket) || worker_->answers_wait) return false;
  const pages::LeasePage* const page = worker_->leases.empty() ? nullptr : worker_->leases.front();
  if (page != nullptr && page->grant.state.load(std::memory_order_relaxed) != pages::LeaseState::free)
    return false;
  bool shares = false;
  worker_->graphics_resources.each([&](wire::Handle, const GraphicsEntry&) { shares = true; });
  return !shares;
}

void GlServer::wait_in_driver(GlContext& context, Request& request, wire::CommandHead head,
                              std::span<const u8> bytes) {
  if (!std::exchange(said_, true))
    log(LogLevel::debug, "OpenGL may wait in the driver: one thread sends", "");
  const u64 start = wire::monotonic_ns();
  execute_last(*worker_, context, request, head, bytes);
  last_wait_ns_ = wire::monotonic_ns() - start;
}

bool GlServer::hold_answer(GlContext& context, const Request& request, wire::CommandHead head,
                           std::span<const u8> bytes) {
  const GLsync sync = sync_behind();
  if (sync == nullptr) return false;
  context.waits = true;
  waiting_.push_back({request, context.index, sync, wire::monotonic_ns(), head,
                      std::vector<u8>(bytes.begin(), bytes.end())});
  worker_->answers_wait = true;
  return true;
}

bool GlServer::resume(Request& request, u64 until_ns) {
  if (waiting_.empty()) return false;
  while (true) {
    const u64 now = wire::monotonic_ns();
    const Waiting& first = waiting_.front();
    const bool spins = wire::Backoff::spare_cores() && now - first.since_ns < kSpinNs;
    const u64 wait_ns = spins || now >= until_ns ? 0 : std::min(kNapNs, until_ns - now);
    if (is_passed(first.context, first.sync, wait_ns)) break;
    if (now < until_ns) continue;
    std::rotate(waiting_.begin(), waiting_.begin() + 1, waiting_.end());
    return false;
  }
  const Waiting first = std::move(waiting_.front());
  waiting_.pop_front();
  last_wait_ns_ = wire::monotonic_ns() - first.since_ns;
  worker_->answers_wait = !waiting_.empty();
  wire::Writer* const out = request.out;
  request = first.request;
  request.out = out;
  if (GlContext* const context = use(first.context); context != nullptr) {
    context->waits = false;
    execute_last(*worker_, *context, request, first.head, first.bytes);
  }
  return true;
}

}  // namespace gpupool::worker
