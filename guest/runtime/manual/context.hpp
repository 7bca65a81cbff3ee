// Contexts as the rest of the guest runtime needs them. The state lives here; the worker is told when a
// context is first made and when it is destroyed.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "guest/runtime/objects.hpp"
#include "guest/runtime/thread_state.hpp"

namespace gpupool::guest {

class LocalStorage;  // context_storage.hpp

inline constexpr u32 kLimits = 16;             // CUlimit values known to the wire
inline constexpr u64 kUnknownLimit = ~u64{0};  // the device has no such limit

struct ContextDetails {
  std::array<std::atomic<u64>, kLimits> limits{};
  std::array<u64, kLimits> initial_limits{};
  int least_priority = 0;
  int greatest_priority = 0;
  std::atomic<int> cache_config{0};
  std::atomic<u32> attached{1};           // cuCtxAttach
  std::vector<Stream*> per_thread;        // every per-thread stream of the context; guarded by Context::mutex
  std::vector<Stream*> spare_per_thread;  // those whose thread has ended; likewise
  std::shared_ptr<LocalStorage> storage;
};

inline CUcontext handle_of(Context* context) {
  return reinterpret_cast<CUcontext>(context);
}

// Called, in the thread that ends it, when a context is destroyed or a primary context is released for the
// last time or reset. The worker's side still exists then and the context is current; a hook frees there and
// here what the program made in it: a primary context keeps living in the worker, and the next retain must
// find it empty.
using ContextEndHook = void (*)(Context& context);
// Registers a hook; they run in order of registration. Meant for static initialisers:
//   const bool registered = at_context_end(&free_events);
bool at_context_end(ContextEndHook hook);

// The object of a device's primary context, made on first use; `alive` says whether it is active. Null with
// `error` set when the program has no such device.
Context* reserve_primary(CUdevice device, CUresult& error);
// Guards the making and ending of contexts. Recursive, since storage destructors call the driver.
std::recursive_mutex& context_lifetime_mutex();

// Makes a new context with its legacy stream, known to the worker, not current anywhere. Null with `error`
// set.
Context* create_context(CUdevice device, u32 flags, CUresult& error);
// A context object that the worker does not know yet.
Context* new_context_object(CUdevice device, CUresult& error);
// Has the worker retain the device's primary context for this object, once.
CUresult open_primary(Context& context, u32 flags);
// Waits for the context's work, ends it and destroys it in the worker. Not for primary contexts.
CUresult destroy_context(Context& context);
// A green context with the resources of a descriptor (green_context.cpp), on top of an active primary
// context.
Context* create_green_context(CUdevice device, Context& primary, u64 description, u32 flags, CUresult& error);
CUresult destroy_green_context(Context& context);
// An id that no context of this process has had.
u64 new_context_id();

// Puts a context on this thread's stack, or takes the top off; they count its uses.
void push_context(Context* context);
Context* pop_context();

// For resolve_stream(): this thread's per-thread stream in a context that has none for it yet.
Stream* make_per_thread_stream(Context& context, CUresult& error);
// For the end of a thread: its stream may serve another thread of the same context.
void return_per_thread_stream(const PerThreadStream& entry);

// Frees what the program made in the context: storage destructors, hooks, streams. `alive` is false
// afterwards.
void end_context(Context& context);

}  // namespace gpupool::guest
