// Stream capture as the client sees it. The worker captures everything in relaxed mode, because its one
// dispatcher thread serves all client threads; the caller's mode is enforced here.
//
// Rules (CUDA Driver API, cuThreadExchangeStreamCaptureMode): a potentially unsafe call is refused when this
// thread has a capture of its own that is not relaxed, or, in global mode, when any thread has a global one.
// The refused call ends those captures: cuStreamEndCapture then says CUDA_ERROR_STREAM_CAPTURE_INVALIDATED.
#pragma once

#include <cuda.h>

#include <atomic>

#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

extern std::atomic<u32> g_active_captures;

CUresult check_unsafe_call_slowly();
CUresult check_legacy_slowly(const Stream& stream, bool invalidates);

// For every call that is unsafe during a capture (allocating, freeing, synchronous copies, synchronising,
// module loading): call it first, and return its result if that is not CUDA_SUCCESS. One load when nothing
// captures.
inline CUresult check_unsafe_call() {
  return g_active_captures.load(std::memory_order_acquire) == 0 ? CUDA_SUCCESS : check_unsafe_call_slowly();
}

// For every call that puts work on a stream or waits for one: the legacy stream would depend on every
// blocking stream, so it cannot be used while one of its context's is capturing.
inline CUresult check_legacy(const Stream& stream) {
  return g_active_captures.load(std::memory_order_acquire) == 0 ? CUDA_SUCCESS
                                                                : check_legacy_slowly(stream, true);
}

// For calls that no capture can contain (querying or synchronising the stream): ends the capture that
// `stream` takes part in and returns CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; CUDA_SUCCESS when it is not
// capturing.
CUresult refuse_capturing(Stream& stream);

// Makes `stream` a part of the capture that `event` was recorded in, as cuStreamWaitEvent does.
void join_capture(Stream& stream, const std::shared_ptr<Capture>& capture);
// The capture that the stream takes part in, or null.
std::shared_ptr<Capture> capture_of(const Stream& stream);
// Takes the stream out of its capture, which is thereby invalid, for cuStreamDestroy.
void abandon_capture(Stream& stream);

}  // namespace gpupool::guest
