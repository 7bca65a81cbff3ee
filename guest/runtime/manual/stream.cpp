// Streams: making and destroying them, asking whether they are done, waiting for them.
#include "guest/runtime/manual/stream.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/kept_memory.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

// A destroyed stream's index stays out of use until the GPU has written its last word: a late write must not
// land in the word of a newer stream.
struct Retired {
  wire::Handle handle;
  u64 last_value = 0;
};

std::mutex g_retired_mutex;
std::vector<Retired>& retired() {
  static auto& list = *new std::vector<Retired>();
  return list;
}

void reclaim_retired(const Session& session) {
  const std::lock_guard lock(g_retired_mutex);
  std::erase_if(retired(), [&](const Retired& each) {
    if (session.word(each.handle.index()) < each.last_value) return false;
    handles(wire::HandleKind::stream).give_back(each.handle);
    return true;
  });
}

bool is_legacy(const Stream& stream) {
  return stream.context != nullptr && stream.context->legacy == &stream;
}
bool is_blocking(const Stream& stream) {
  return (stream.flags & CU_STREAM_NON_BLOCKING) == 0;
}

bool covered(const Session& session, const Stream& stream) {
  if (session.idle(stream)) return true;
  if (!is_blocking(stream) || stream.context == nullptr || stream.context->legacy == nullptr) return false;
  // Work on the legacy stream begins after all earlier work of blocking streams and before all later.
  return session.word(stream.context->legacy->handle.index()) >=
         stream.last_work.load(std::memory_order_acquire);
}

}  // namespace

u64 needed_value(const Session& session, const Stream& stream) {
  u64 needed = stream.last_work.load(std::memory_order_acquire);
  if (!is_legacy(stream)) return needed;
  const std::lock_guard lock(stream.context->mutex);
  for (const Stream* other : stream.context->streams)
    if (other != &stream && is_blocking(*other) && !other->capturing.load(std::memory_order_acquire) &&
        !covered(session, *other))
      needed = std::max(needed, other->last_work.load(std::memory_order_acquire));
  return needed;
}

bool finished(const Session& session, const Stream& stream) {
  if (is_legacy(stream)) return session.word(stream.handle.index()) >= needed_value(session, stream);
  return covered(session, stream);
}

u64 new_stream_id() {
  static std::atomic<u64> next{16};  // below: room for the implicit streams, whose ids are small in CUDA too
  return next.fetch_add(1, std::memory_order_relaxed);
}

CUresult poll_for_fault(Session& session) {
  static std::atomic<u64> last_ns{0};
  constexpr u64 kEveryNs = 5'000'000;
  const u64 now = wire::monotonic_ns();
  u64 before = last_ns.load(std::memory_order_relaxed);
  if (now - before < kEveryNs || !last_ns.compare_exchange_strong(before, now, std::memory_order_relaxed))
    return session.failed();
  Call call(wire::Function::fault_check);
  const CUresult result = call.send();
  return result == CUDA_SUCCESS ? session.check_alive() : result;
}

namespace api {
namespace {

CUresult mark_and_wait(Session& session, Stream& stream) {
  Call call(wire::Function::stream_mark);
  call.on(stream);
  call.mark();
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  return session.wait_word(stream.handle.index(), call.ticket() + 1);
}

// Whether captures allow asking or waiting for the stream.
CUresult check_wait(Stream& stream) {
  if (const CUresult result = refuse_capturing(stream); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_legacy(stream); result != CUDA_SUCCESS) return result;
  return check_unsafe_call();
}

void forget_stream(const Session& session, Stream& stream, u64 last_value) {
  {
    Context& context = *stream.context;
    const std::lock_guard lock(context.mutex);
    std::erase(context.streams, &stream);
    std::erase_if(context.leaving, [&](const auto& each) { return session.word(each.first) >= each.second; });
    context.leaving.emplace_back(stream.handle.index(), last_value);
  }
  const std::lock_guard lock(g_retired_mutex);
  retired().push_back({stream.handle, last_value});
}

}  // namespace

CUresult cuStreamCreateWithPriority(CUstream* out, unsigned int flags, int priority) {
  if (out == nullptr || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  Session* session = Session::current();
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  reclaim_retired(*session);
  const wire::Handle handle = handles(wire::HandleKind::stream).take();
  if (!handle) return CUDA_ERROR_OUT_OF_MEMORY;
  Stream* stream = g_streams.create([&](Stream& fresh) {
    fresh.handle = handle;
    fresh.context = context;
  });
  if (stream == nullptr) {
    handles(wire::HandleKind::stream).give_back(handle);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }

  stream->green = top_context()->green ? top_context() : nullptr;
  stream->flags = flags;
  // Lower numbers are greater priorities; a number out of range is clamped (cuda.h).
  stream->priority =
      std::clamp(priority, context->details->greatest_priority, context->details->least_priority);
  stream->id = new_stream_id();
  Call call(wire::Function::cuStreamCreateWithPriority);
  call.put(handle);
  call.put(static_cast<u32>(flags));
  call.put(static_cast<i32>(stream->priority));
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) {
    g_streams.destroy(stream);
    handles(wire::HandleKind::stream).give_back(handle);
    return result;
  }
  {
    const std::lock_guard lock(context->mutex);
    context->streams.push_back(stream);
  }
  *out = reinterpret_cast<CUstream>(stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* out, unsigned int flags) {
  return api::cuStreamCreateWithPriority(out, flags, 0);
}

CUresult cuStreamDestroy_v2(CUstream handle) {
  Stream* stream = g_streams.find(handle);
  if (stream == nullptr || stream->implicit) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capturing.load(std::memory_order_acquire)) abandon_capture(*stream);
  give_back_kept(stream);
  Call call(wire::Function::cuStreamDestroy_v2);
  call.on(*stream);
  call.mark();
  const CUresult result = call.send();
  // A call that was not sent leaves the stream behind in a session that has failed.
  const u64 last_value = result == CUDA_SUCCESS ? call.ticket() + 1 : 0;
  forget_stream(*Session::current(), *stream, last_value);
  g_streams.destroy(stream);
  return result;
}

CUresult cuStreamDestroy(CUstream handle) {
  return api::cuStreamDestroy_v2(handle);
}

CUresult cuStreamQuery(CUstream handle) {
  Session& session = *Session::current();
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (const CUresult result = check_wait(*stream); result != CUDA_SUCCESS) return result;
  if (const CUresult result = session.take_async_error(); result != CUDA_SUCCESS) return result;
  if (finished(session, *stream)) return CUDA_SUCCESS;
  if (stream->last_mark.load(std::memory_order_acquire) >= needed_value(session, *stream)) {
    const CUresult result = poll_for_fault(session);
    return result == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : result;
  }
  // The first query since new work asks the driver, and a mark behind it answers all later ones.
  Call call(wire::Function::cuStreamQuery);
  call.on(*stream);
  call.mark();
  const CUresult result = call.wait();
  // Nothing was pending, so the mark completes at once: having said "done", the next query must say so too.
  if (result == CUDA_SUCCESS) return session.wait_word(stream->handle.index(), call.ticket() + 1);
  return result;
}

CUresult cuStreamSynchronize(CUstream handle) {
  Session& session = *Session::current();
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (const CUresult result = check_wait(*stream); result != CUDA_SUCCESS) return result;
  if (finished(session, *stream)) return session.wait_word(stream->handle.index(), 0);
  const u64 needed = needed_value(session, *stream);
  if (stream->last_mark.load(std::memory_order_acquire) >= needed)
    return session.wait_word(stream->handle.index(), needed);
  return mark_and_wait(session, *stream);
}

CUresult cuStreamGetFlags(CUstream handle, unsigned int* flags) {
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  *flags = stream->implicit ? 0 : stream->flags;
  return CUDA_SUCCESS;
}

CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  if (priority == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  *priority = stream->priority;
  return CUDA_SUCCESS;
}

CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  *id = stream->id;
  return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  *context = reinterpret_cast<CUcontext>(stream->context);
  return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx_v2(CUstream handle, CUcontext* context, CUgreenCtx* green) {
  if (context == nullptr || green == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = api::cuStreamGetCtx(handle, context);
  return result == CUDA_SUCCESS ? api::cuStreamGetGreenCtx(handle, green) : result;
}

CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  *device = stream->context->device;
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
