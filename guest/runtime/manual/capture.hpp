// Stream capture as the client sees it. The worker captures everything in relaxed mode, because its one
// dispatcher thread serves all client threads; the caller's mode is enforced here.
//
// Rules (CUDA Driver API, cuThreadExchangeStreamCaptureMode): a potentially unsafe call is refused when this
// thread has a capture of its own that is not relaxed, or, in global mode, when any thread has a global one.
// The refused call ends those captures: cuStreamEndCapture then says CUDA_ERROR_STREAM_CAPTURE_INVALIDATED.
//
// Which calls are unsafe, measured on driver 580 with an H100: allocating and freeing device and pinned
// memory (the stream-ordered way on another stream too), asking for and waiting for events and streams,
// instantiating a graph. Not unsafe: synchronous copies and memsets, cuMemGetInfo, loading modules,
// cuEventElapsedTime, making and destroying streams and events, work on streams outside the capture.
// cuCtxSynchronize is refused in every mode.
#pragma once

#include <cuda.h>

#include <atomic>

#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

extern std::atomic<u32> g_active_captures;

CUresult check_unsafe_call_slowly();
CUresult check_stream_slowly(const Stream& stream);
// CUDA_ERROR_STREAM_CAPTURE_IMPLICIT for a legacy stream that depends on a capture, which `invalidates` then
// ends.
CUresult check_legacy_slowly(const Stream& stream, bool invalidates);

// For every call that is unsafe during a capture: call it first, and return its result if that is not
// CUDA_SUCCESS. One load when nothing captures.
inline CUresult check_unsafe_call() {
  return g_active_captures.load(std::memory_order_acquire) == 0 ? CUDA_SUCCESS : check_unsafe_call_slowly();
}

// For every call that puts work on a stream or waits for one. The legacy stream would depend on every
// blocking stream, so it cannot be used while one of its context's is capturing; and a stream whose capture
// has become invalid takes nothing until that is ended.
inline CUresult check_legacy(const Stream& stream) {
  return g_active_captures.load(std::memory_order_acquire) == 0 ? CUDA_SUCCESS : check_stream_slowly(stream);
}

// For calls that no capture can contain (querying or synchronising the stream): ends the capture that
// `stream` takes part in and returns CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; CUDA_SUCCESS when it is not
// capturing.
CUresult refuse_capturing(Stream& stream);

// The capture that the stream takes part in, if any, can only be ended now: something was refused that it
// contains.
void invalidate_capture(Stream& stream);

// For cuCtxSynchronize, which would wait for the streams that capture: ends their captures and refuses.
CUresult check_context_synchronize(const Context& context);

// Makes `stream` a part of the capture that `event` was recorded in, as cuStreamWaitEvent does.
void join_capture(Stream& stream, const std::shared_ptr<Capture>& capture);
// The capture that the stream takes part in, or null.
std::shared_ptr<Capture> capture_of(const Stream& stream);
// Takes the stream out of its capture, for cuStreamDestroy. A capture that it began is over: nobody can end
// it.
void abandon_capture(Stream& stream);

}  // namespace gpupool::guest
