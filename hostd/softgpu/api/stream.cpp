// Streams: making, destroying, asking. How they run is in stream_queue.cpp.
#include "hostd/softgpu/api/stream.hpp"

#include <algorithm>

#include "hostd/softgpu/api/capture.hpp"

namespace gpupool::softgpu {

Registry<Stream, CUstream>& streams() {
  static auto* registry = new Registry<Stream, CUstream>(1);  // never destroyed: executors outlive exit()
  return *registry;
}

std::shared_ptr<Stream> make_stream(const std::shared_ptr<Context>& context, u32 flags, int priority) {
  static std::atomic<u64> next_id{1};
  auto stream = std::make_shared<Stream>();
  stream->context = context;
  stream->flags = flags;
  stream->priority = std::clamp(priority, kGreatestPriority, kLeastPriority);
  stream->id = next_id.fetch_add(1);
  return stream;
}

namespace {

std::shared_ptr<Stream> per_thread_stream(const std::shared_ptr<Context>& context) {
  const std::lock_guard lock(context->submit_mutex);
  std::shared_ptr<Stream>& stream = context->per_thread[std::this_thread::get_id()];
  if (!stream) {
    stream = make_stream(context, CU_STREAM_DEFAULT, 0);
    stream->implicit = true;
    stream->handle = CU_STREAM_PER_THREAD;
    context->streams.push_back(stream);
  }
  return stream;
}

std::shared_ptr<Stream> legacy_stream(Context& context) {
  const std::lock_guard lock(context.submit_mutex);
  require(context.legacy != nullptr, CUDA_ERROR_CONTEXT_IS_DESTROYED);  // in another thread, just now
  return context.legacy;
}

void create(CUstream* out, u32 flags, int priority) {
  require(out != nullptr && (flags & ~static_cast<u32>(CU_STREAM_NON_BLOCKING)) == 0);
  const auto context = current_context();
  const auto stream = make_stream(context, flags, priority);
  *out = streams().add(stream);
  const std::lock_guard lock(context->submit_mutex);
  context->streams.push_back(stream);
}

}  // namespace

std::shared_ptr<Stream> resolve_stream_any(CUstream handle) {
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return legacy_stream(*current_context_any());
  if (handle == CU_STREAM_PER_THREAD) return per_thread_stream(current_context_any());
  const auto stream = streams().get(handle);
  require(!stream->context->destroyed.load(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
  return stream;
}

std::shared_ptr<Stream> resolve_stream(CUstream handle) {
  auto stream = resolve_stream_any(handle);
  stream->context->require_healthy();
  return stream;
}

void close_streams(Context& context) {
  for (const auto& stream : streams().all())
    if (stream->context.get() == &context && streams().take(stream->handle)) stream->close();
  std::map<std::thread::id, std::shared_ptr<Stream>> implicit;
  {
    const std::lock_guard lock(context.submit_mutex);
    implicit.swap(context.per_thread);
  }
  for (const auto& [thread, stream] : implicit) stream->close();
}

GPUPOOL_CUDA CUresult cuStreamCreate(CUstream* out, unsigned int flags) {
  return call([&] { create(out, flags, 0); });
}

GPUPOOL_CUDA CUresult cuStreamCreateWithPriority(CUstream* out, unsigned int flags, int priority) {
  return call([&] { create(out, flags, priority); });
}

GPUPOOL_CUDA CUresult cuStreamDestroy_v2(CUstream handle) {
  return call([&] {
    require(handle != nullptr && handle != CU_STREAM_LEGACY && handle != CU_STREAM_PER_THREAD,
            CUDA_ERROR_INVALID_HANDLE);
    const auto stream = streams().take(handle);
    require(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    abandon_capture(*stream);
    stream->close();
  });
}

GPUPOOL_CUDA CUresult cuStreamSynchronize(CUstream handle) {
  return call([&] {
    const auto stream = resolve_stream_any(handle);
    refuse_while_capturing(*stream);
    return stream->synchronize();
  });
}

GPUPOOL_CUDA CUresult cuStreamQuery(CUstream handle) {
  return call([&] {
    const auto stream = resolve_stream(handle);
    refuse_while_capturing(*stream);
    if (!stream->idle()) return CUDA_ERROR_NOT_READY;
    return stream->context->state();
  });
}

GPUPOOL_CUDA CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  return call([&] {
    require(priority != nullptr);
    *priority = resolve_stream(handle)->priority;
  });
}

GPUPOOL_CUDA CUresult cuStreamGetFlags(CUstream handle, unsigned int* flags) {
  return call([&] {
    require(flags != nullptr);
    *flags = resolve_stream(handle)->flags;
  });
}

GPUPOOL_CUDA CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  return call([&] {
    require(id != nullptr);
    *id = resolve_stream(handle)->id;
  });
}

GPUPOOL_CUDA CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  return call([&] {
    require(context != nullptr);
    *context = resolve_stream(handle)->context->handle;
  });
}

GPUPOOL_CUDA CUresult cuStreamGetCtx_v2(CUstream handle, CUcontext* context, CUgreenCtx* green) {
  return call([&] {
    require(context != nullptr && green != nullptr);
    *context = resolve_stream(handle)->context->handle;
    *green = nullptr;  // there are no green contexts here
  });
}

GPUPOOL_CUDA CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  return call([&] {
    require(device != nullptr);
    *device = resolve_stream(handle)->context->device->ordinal;
  });
}

}  // namespace gpupool::softgpu
