// Making and ending contexts: objects, streams, hooks. The API functions are in context_api.cpp and
// context_primary.cpp.
#include "guest/runtime/manual/context.hpp"

#include <algorithm>
#include <deque>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/context_storage.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/stream.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

std::vector<ContextEndHook>& hooks() {
  static auto& all = *new std::vector<ContextEndHook>();
  return all;
}

// Destroyed contexts that may still be on a thread's stack. Their memory is reused once they are on none, the
// oldest first, so that a stale CUcontext is recognised for long.
class Graveyard {
 public:
  void bury(Context* context) {
    const std::lock_guard lock(mutex_);
    dead_.push_back(context);
    if (dead_.size() <= kKept) return;
    const auto unused = std::find_if(dead_.begin(), dead_.end(), [](const Context* each) {
      return each->uses.load(std::memory_order_acquire) == 0;
    });
    if (unused == dead_.end()) return;
    g_contexts.destroy(*unused);
    dead_.erase(unused);
  }

 private:
  static constexpr size_t kKept = 64;
  std::mutex mutex_;
  std::deque<Context*> dead_;
};

Graveyard& graveyard() {
  static auto& yard = *new Graveyard();
  return yard;
}

enum class ImplicitStream : u32 { legacy = 1, per_thread = 2 };

// Makes the object of an implicit stream and tells the worker its handle. Null when handles have run out.
Stream* adopt_stream(Context& context, ImplicitStream kind, CUresult& error) {
  const wire::Handle handle = handles(wire::HandleKind::stream).take();
  const auto fill = [&](Stream& stream) {
    stream.handle = handle;
    stream.context = context.owner;
  };
  Stream* stream = handle ? g_streams.create(fill) : nullptr;
  if (stream == nullptr) {
    handles(wire::HandleKind::stream).give_back(handle);
    error = CUDA_ERROR_OUT_OF_MEMORY;
    return nullptr;
  }
  stream->green = context.green ? &context : nullptr;
  // Nothing is known of how a green context's default stream and the primary context's order each other: each
  // is waited for by itself.
  stream->flags = context.green ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT;
  stream->id = new_stream_id();
  stream->implicit = true;
  const ScopedContext scope(&context);
  Call call(wire::Function::stream_adopt);
  call.put<u64>(handle.bits);
  call.put<u32>(static_cast<u32>(kind));
  error = call.send();
  if (error != CUDA_SUCCESS) {
    g_streams.destroy(stream);
    handles(wire::HandleKind::stream).give_back(handle);
    return nullptr;
  }
  {
    const std::lock_guard lock(context.owner->mutex);
    context.owner->streams.push_back(stream);
  }
  const std::lock_guard lock(context.mutex);
  if (kind == ImplicitStream::per_thread) context.details->per_thread.push_back(stream);
  return stream;
}

// Reads what the worker says about a new context; the other end is describe_context() in
// hostd/worker/manual/context.cpp.
void read_description(Call& call, ContextDetails& details) {
  details.least_priority = call.get<i32>();
  details.greatest_priority = call.get<i32>();
  for (u32 i = 0; i < kLimits; ++i) {
    details.initial_limits[i] = call.get<u64>();
    details.limits[i].store(details.initial_limits[i], std::memory_order_relaxed);
  }
}

// Takes in the worker's answer and gives the context its legacy stream.
CUresult finish_opening(Call& call, Context& context) {
  read_description(call, *context.details);
  context.alive.store(true, std::memory_order_release);  // from here on slots may name it
  CUresult error = CUDA_SUCCESS;
  context.legacy = adopt_stream(context, ImplicitStream::legacy, error);
  return error;
}

// Asks the worker for a context (primary or not).
CUresult open_context(Context& context, wire::Function function, u32 flags) {
  Call call(function);
  call.put<u64>(context.handle.bits);
  call.put<i32>(session_device(context.device));
  call.put<u32>(flags);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  return finish_opening(call, context);
}

}  // namespace

Context* new_context_object(CUdevice device, CUresult& error) {
  const wire::Handle handle = handles(wire::HandleKind::context).take();
  const auto fill = [&](Context& context) {
    context.handle = handle;
    context.index = handle.index();
  };
  Context* context = handle ? g_contexts.create(fill) : nullptr;
  if (context == nullptr) {
    handles(wire::HandleKind::context).give_back(handle);
    error = CUDA_ERROR_OUT_OF_MEMORY;
    return nullptr;
  }
  context->device = device;
  context->id = new_context_id();
  context->details = std::make_shared<ContextDetails>();
  context->details->storage = std::make_shared<LocalStorage>();
  return context;
}

bool at_context_end(ContextEndHook hook) {
  hooks().push_back(hook);
  return true;
}

u64 new_context_id() {
  static std::atomic<u64> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

std::recursive_mutex& context_lifetime_mutex() {
  static auto& mutex = *new std::recursive_mutex();
  return mutex;
}

void push_context(Context* context) {
  context->uses.fetch_add(1, std::memory_order_relaxed);
  thread_state().stack.push_back(context);
}

Context* pop_context() {
  std::vector<Context*>& stack = thread_state().stack;
  Context* top = stack.back();
  stack.pop_back();
  top->uses.fetch_sub(1, std::memory_order_release);
  return top;
}

Context* create_context(CUdevice device, u32 flags, CUresult& error) {
  Context* context = new_context_object(device, error);
  if (context == nullptr) return nullptr;
  context->flags.store(flags, std::memory_order_relaxed);
  error = open_context(*context, wire::Function::cuCtxCreate_v2, flags);
  if (error == CUDA_SUCCESS) return context;
  handles(wire::HandleKind::context).give_back(context->handle);
  g_contexts.destroy(context);
  return nullptr;
}

Context* create_green_context(CUdevice device, Context& primary, u64 description, u32 flags,
                              CUresult& error) {
  Context* context = new_context_object(device, error);
  if (context == nullptr) return nullptr;
  context->green = true;
  context->owner = &primary;
  context->flags.store(primary.flags.load(std::memory_order_relaxed), std::memory_order_relaxed);
  Call call(wire::Function::cuGreenCtxCreate);
  call.put<u64>(context->handle.bits);
  call.put<u64>(primary.handle.bits);
  call.put<u64>(description);
  call.put<i32>(session_device(device));
  call.put<u32>(flags);
  error = call.wait();
  if (error == CUDA_SUCCESS) error = finish_opening(call, *context);
  if (error == CUDA_SUCCESS) return context;
  handles(wire::HandleKind::context).give_back(context->handle);
  g_contexts.destroy(context);
  return nullptr;
}

// The context lives on as an object that is dead, as other destroyed contexts do.
CUresult destroy_green_context(Context& context) {
  Context& primary = *context.owner;
  const CUresult pending = Session::current()->synchronize(primary);
  const std::lock_guard lifetime(context_lifetime_mutex());
  if (!context.alive.load(std::memory_order_acquire))
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;  // another thread
  context.alive.store(false, std::memory_order_release);
  context.owner = &context;
  std::vector<Stream*> streams;
  {
    const std::lock_guard lock(primary.mutex);
    for (Stream* stream : primary.streams)
      if (stream->green == &context) streams.push_back(stream);
    std::erase_if(primary.streams, [&](const Stream* stream) { return stream->green == &context; });
  }
  Call call(wire::Function::cuGreenCtxDestroy);
  call.put<u64>(context.handle.bits);
  const CUresult result = call.wait();
  for (Stream* stream : streams) {
    handles(wire::HandleKind::stream).give_back(stream->handle);
    g_streams.destroy(stream);
  }
  handles(wire::HandleKind::context).give_back(context.handle);
  graveyard().bury(&context);
  return result != CUDA_SUCCESS ? result : pending;
}

CUresult open_primary(Context& context, u32 flags) {
  return open_context(context, wire::Function::cuDevicePrimaryCtxRetain, flags);
}

Stream* make_per_thread_stream(Context& context, CUresult& error) {
  Stream* stream = nullptr;
  {
    const std::lock_guard lock(context.mutex);
    std::vector<Stream*>& spare = context.details->spare_per_thread;
    if (!spare.empty()) {
      stream = spare.back();
      spare.pop_back();
    }
  }
  if (stream == nullptr) stream = adopt_stream(context, ImplicitStream::per_thread, error);
  if (stream != nullptr) thread_state().per_thread_streams.push_back({context.id, stream});
  return stream;
}

void return_per_thread_stream(const PerThreadStream& entry) {
  Stream* stream = g_streams.find(entry.stream);
  if (stream == nullptr) return;
  // The id tells this stream's context from one that came after it in the same memory. Contexts are not
  // unmapped, so reading one that ends right now is harmless.
  Context* context = stream->green != nullptr ? stream->green : stream->context;
  if (context->id != entry.context_id || !context->alive.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(context->mutex);
  context->details->spare_per_thread.push_back(stream);
}

void end_context(Context& context) {
  const ScopedContext scope(&context);
  context.details->storage->clear(handle_of(&context));
  for (const ContextEndHook hook : hooks()) hook(context);
  std::vector<Stream*> made;
  {
    const std::lock_guard lock(context.mutex);
    for (Stream* stream : context.streams)
      if (!stream->implicit) made.push_back(stream);
  }
  for (Stream* stream : made) api::cuStreamDestroy_v2(reinterpret_cast<CUstream>(stream));
  context.alive.store(false, std::memory_order_release);
  const std::lock_guard lock(context.mutex);
  // Threads find their per-thread streams by context id, which a revived primary context does not keep.
  context.details->spare_per_thread = context.details->per_thread;
}

CUresult destroy_context(Context& context) {
  if (!context.alive.load(std::memory_order_acquire)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  // Waiting here, on memory, leaves the worker's dispatcher free for other threads; and before the lock, so
  // that they can make and end contexts meanwhile.
  const CUresult pending = Session::current()->synchronize(context);
  const std::lock_guard lifetime(context_lifetime_mutex());
  if (!context.alive.load(std::memory_order_acquire))
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;  // another thread
  end_context(context);
  Call call(wire::Function::cuCtxDestroy_v2);
  call.put<u64>(context.handle.bits);
  const CUresult result = call.wait();
  {
    const std::lock_guard lock(context.mutex);
    for (Stream* stream : context.streams) {
      handles(wire::HandleKind::stream).give_back(stream->handle);
      g_streams.destroy(stream);
    }
    context.streams.clear();
  }
  handles(wire::HandleKind::context).give_back(context.handle);
  graveyard().bury(&context);
  return result != CUDA_SUCCESS ? result : pending;
}

}  // namespace gpupool::guest
