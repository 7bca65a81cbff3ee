// What the driver API keeps per thread: the stack of current contexts, the default-stream flavour of the call
// in progress, the per-thread streams, the capture mode; and our index in the window.
#pragma once

#include <cuda.h>

#include <memory>
#include <vector>

#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

struct ThreadProfile;
class ProfiledCall;

// The stream that CU_STREAM_PER_THREAD means in one context. The id tells a context from a later one at its
// address.
struct PerThreadStream {
  u64 context_id = 0;
  Stream* stream = nullptr;
};

// Pointers that cuStreamGetCaptureInfo gives out; valid until the thread's next call on the stream (cuda.h).
struct CaptureArrays {
  std::vector<CUgraphNode> nodes;
  std::vector<CUgraphEdgeData> edges;
};

struct ThreadState {
  std::vector<Context*>
      stack;  // back() is current; changed by manual/context*.cpp only, which counts the uses
  CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::vector<PerThreadStream> per_thread_streams;  // made on first use
  u32 index = kNoIndex;                             // wire thread index, taken on the first message
  CaptureArrays capture_arrays;
  std::shared_ptr<void> occupancy_answers;  // manual/occupancy.cpp, manual/tensor_map.cpp; made on first use
  std::shared_ptr<void> tensor_maps;
  ThreadProfile* profile = nullptr;       // profile.hpp: where this thread's calls are counted...
  ProfiledCall* profiled_call = nullptr;  // ... and the one in progress
  bool per_thread_default = false;        // inside a _ptds / _ptsz entry point: stream 0 means per-thread

  static constexpr u32 kNoIndex = ~0u;
};

// This thread's state; created on first use, released when the thread ends.
ThreadState& thread_state();

// This thread's wire index, taken on first use and given back when the thread ends. ThreadState::kNoIndex
// when wire::kThreads threads hold one already.
u32 thread_index();

// The context on top of this thread's stack, or null: what the program has made current, and what slots name.
// Hot: one thread-local load.
Context* top_context();

// The context that owns what this thread makes, or null: the one on top, but for a green context the primary
// one.
Context* current_context();

// What a call that needs a context answers without one: INVALID_CONTEXT, CONTEXT_IS_DESTROYED, or
// CUDA_SUCCESS.
inline CUresult check_context(const Context* context) {
  if (context == nullptr) [[unlikely]]
    return CUDA_ERROR_INVALID_CONTEXT;
  return context->alive.load(std::memory_order_acquire) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

// Makes `context` current in this thread for a scope, for messages about a context that the program has not
// made current. Invisible to the program.
class ScopedContext {
 public:
  explicit ScopedContext(Context* context);
  ~ScopedContext();
  ScopedContext(const ScopedContext&) = delete;
  ScopedContext& operator=(const ScopedContext&) = delete;
};

// Resolves 0, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD and real handles. On failure returns null and sets
// `error` to what the driver would answer (INVALID_CONTEXT without a current context, INVALID_HANDLE,
// CONTEXT_IS_DESTROYED). A real handle needs no current context, as with the real driver (measured).
Stream* resolve_stream(CUstream stream, CUresult& error);

// Marks the entry points whose stream 0 is the per-thread stream. Used by generated entry points only.
class PerThreadDefault {
 public:
  PerThreadDefault() : state_(thread_state()), before_(state_.per_thread_default) {
    state_.per_thread_default = true;
  }
  ~PerThreadDefault() { state_.per_thread_default = before_; }
  PerThreadDefault(const PerThreadDefault&) = delete;
  PerThreadDefault& operator=(const PerThreadDefault&) = delete;

 private:
  ThreadState& state_;
  bool before_;
};

}  // namespace gpupool::guest
