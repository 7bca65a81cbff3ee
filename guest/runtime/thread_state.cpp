// Per-thread state behind one initial-exec thread-local pointer, so that reading it is a single load even
// though this library is usually dlopen'ed.
#include "guest/runtime/thread_state.hpp"

#include <pthread.h>

#include <mutex>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/profile.hpp"

namespace gpupool::guest {
namespace {

// 8 bytes of static TLS: glibc keeps a surplus for libraries loaded later.
__attribute__((tls_model("initial-exec"))) thread_local ThreadState* t_state = nullptr;

// Wire thread indices. Taken and given back once in a thread's life: a lock costs nothing there.
class ThreadIndices {
 public:
  u32 take() {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      const u32 index = free_.back();
      free_.pop_back();
      return index;
    }
    if (next_ < wire::kThreads) return next_++;
    return ThreadState::kNoIndex;
  }
  void give_back(u32 index) {
    const std::lock_guard lock(mutex_);
    free_.push_back(index);
  }

 private:
  std::mutex mutex_;
  std::vector<u32> free_;
  u32 next_ = 0;
};

ThreadIndices& thread_indices() {
  static auto& indices = *new ThreadIndices();  // threads end after static destructors too
  return indices;
}

void release_thread(void* value) {
  auto* state = static_cast<ThreadState*>(value);
  t_state = nullptr;
  for (Context* context : state->stack) context->uses.fetch_sub(1, std::memory_order_release);
  for (const PerThreadStream& entry : state->per_thread_streams) return_per_thread_stream(entry);
  if (state->index != ThreadState::kNoIndex) thread_indices().give_back(state->index);
  return_profile(state->profile);
  delete state;
}

// A destructor that runs CUDA calls after ours makes a new state and sets the key again: glibc then calls
// release_thread once more.
pthread_key_t exit_key() {
  static const pthread_key_t key = [] {
    pthread_key_t made{};
    if (pthread_key_create(&made, &release_thread) != 0)
      log_line("no pthread key is left: memory of threads that end is not given back");
    return made;
  }();
  return key;
}

__attribute__((noinline)) ThreadState& create_state() {
  t_state = new ThreadState();
  pthread_setspecific(exit_key(), t_state);
  return *t_state;
}

}  // namespace

ThreadState& thread_state() {
  ThreadState* state = t_state;
  return state != nullptr ? *state : create_state();
}

u32 thread_index() {
  ThreadState& state = thread_state();
  if (state.index == ThreadState::kNoIndex) [[unlikely]]
    state.index = thread_indices().take();
  return state.index;
}

Context* top_context() {
  const ThreadState* state = t_state;
  return state == nullptr || state->stack.empty() ? nullptr : state->stack.back();
}

Context* current_context() {
  const Context* top = top_context();
  return top == nullptr ? nullptr : top->owner;
}

ScopedContext::ScopedContext(Context* context) {
  thread_state().stack.push_back(context);
  context->uses.fetch_add(1, std::memory_order_relaxed);
}

ScopedContext::~ScopedContext() {
  std::vector<Context*>& stack = thread_state().stack;
  stack.back()->uses.fetch_sub(1, std::memory_order_release);
  stack.pop_back();
}

Stream* resolve_stream(CUstream stream, CUresult& error) {
  const auto value = reinterpret_cast<u64>(stream);
  if (value > 2) [[likely]] {
    Stream* found = g_streams.find(stream);
    if (found == nullptr) {
      error = CUDA_ERROR_INVALID_HANDLE;
      return nullptr;
    }
    if (!found->context->alive.load(std::memory_order_acquire)) {
      error = CUDA_ERROR_INVALID_CONTEXT;
      return nullptr;
    }
    return found;
  }
  Context* context = top_context();
  if (error = check_context(context == nullptr ? nullptr : context->owner); error != CUDA_SUCCESS)
    return nullptr;
  const ThreadState& state = *t_state;
  const bool per_thread = stream == CU_STREAM_PER_THREAD || (stream == nullptr && state.per_thread_default);
  if (!per_thread) return context->legacy;
  for (const PerThreadStream& entry : state.per_thread_streams)
    if (entry.context_id == context->id) return entry.stream;
  return make_per_thread_stream(*context, error);
}

}  // namespace gpupool::guest
