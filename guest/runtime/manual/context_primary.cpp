// Primary contexts. The worker opens one when it is first retained and keeps it for the session: releasing it
// for the last time and resetting it are emulated by freeing what the program made in it, since a real reset
// would drop the window's registration with the GPU.
#include <array>
#include <atomic>

#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/limits.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

struct Primary {
  std::atomic<Context*> context{nullptr};
  std::atomic<u32> flags{0};
  std::atomic<bool> active{false};
  u32 retained = 0;  // guarded by context_lifetime_mutex()
};
std::array<Primary, wire::kMaxDevices> g_primaries;  // by CUdevice

// CU_CTX_MAP_HOST is refused here though it is a context flag, as by the driver (measured).
bool valid_flags(u32 flags) {
  constexpr u32 kAllowed = CU_CTX_SCHED_MASK | CU_CTX_LMEM_RESIZE_TO_MAX | CU_CTX_COREDUMP_ENABLE |
                           CU_CTX_USER_COREDUMP_ENABLE | CU_CTX_SYNC_MEMOPS;
  return (flags & ~kAllowed) == 0 && valid_schedule(flags);
}

Primary* find_primary(CUdevice device) {
  return device_info(device) == nullptr ? nullptr : &g_primaries[static_cast<size_t>(device)];
}

// Under context_lifetime_mutex().
Context* object_of(Primary& primary, CUdevice device, CUresult& error) {
  Context* context = primary.context.load(std::memory_order_relaxed);
  if (context != nullptr) return context;
  context = new_context_object(device, error);
  if (context == nullptr) return nullptr;
  context->primary = true;
  context->alive.store(false, std::memory_order_relaxed);
  primary.context.store(context, std::memory_order_release);
  return context;
}

CUresult activate(Primary& primary, CUdevice device) {
  CUresult result = CUDA_SUCCESS;
  Context* context = object_of(primary, device, result);
  if (context == nullptr) return result;
  if (context->legacy == nullptr) {
    result = open_primary(*context, primary.flags.load(std::memory_order_relaxed));
  } else {
    context->id = new_context_id();
    context->alive.store(true, std::memory_order_release);
    result = restore_limits(*context);
  }
  if (result != CUDA_SUCCESS) {
    context->alive.store(false, std::memory_order_release);
    return result;
  }
  // The driver reports MAP_HOST for every primary context (measured).
  context->flags.store(primary.flags.load(std::memory_order_relaxed) | CU_CTX_MAP_HOST,
                       std::memory_order_relaxed);
  primary.active.store(true, std::memory_order_release);
  return CUDA_SUCCESS;
}

CUresult deactivate(Primary& primary) {
  Context& context = *primary.context.load(std::memory_order_relaxed);
  const CUresult result = Session::current()->synchronize(context);
  {
    const ScopedContext scope(&context);
    Call call(wire::Function::context_empty);
    static_cast<void>(call.wait());  // a session that has failed has nothing to empty
  }
  end_context(context);
  primary.active.store(false, std::memory_order_release);
  primary.flags.store(0, std::memory_order_relaxed);
  return result;
}

}  // namespace

Context* reserve_primary(CUdevice device, CUresult& error) {
  Primary* primary = find_primary(device);
  if (primary == nullptr) {
    error = CUDA_ERROR_INVALID_DEVICE;
    return nullptr;
  }
  const std::lock_guard lock(context_lifetime_mutex());
  return object_of(*primary, device, error);
}

namespace api {

CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice dev) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Primary* primary = find_primary(dev);
  if (primary == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const std::lock_guard lock(context_lifetime_mutex());
  if (!primary->active.load(std::memory_order_relaxed)) {
    if (const CUresult result = activate(*primary, dev); result != CUDA_SUCCESS) return result;
  }
  ++primary->retained;
  *out = handle_of(primary->context.load(std::memory_order_relaxed));
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
  Primary* primary = find_primary(dev);
  if (primary == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const std::lock_guard lock(context_lifetime_mutex());
  if (primary->retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --primary->retained;
  const bool last = primary->retained == 0 && primary->active.load(std::memory_order_relaxed);
  return last ? deactivate(*primary) : CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
  return api::cuDevicePrimaryCtxRelease_v2(dev);
}

// Keeps the count of retains: the next retain makes the context active again, and all have to be released.
CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
  Primary* primary = find_primary(dev);
  if (primary == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const std::lock_guard lock(context_lifetime_mutex());
  return primary->active.load(std::memory_order_relaxed) ? deactivate(*primary) : CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
  return api::cuDevicePrimaryCtxReset_v2(dev);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int* flags, int* active) {
  const Primary* primary = find_primary(dev);
  if (primary == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *flags = primary->flags.load(std::memory_order_relaxed);
  *active = primary->active.load(std::memory_order_acquire) ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags) {
  Primary* primary = find_primary(dev);
  if (primary == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (!valid_flags(flags)) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(context_lifetime_mutex());
  primary->flags.store(flags, std::memory_order_relaxed);
  if (primary->active.load(std::memory_order_relaxed))
    primary->context.load(std::memory_order_relaxed)
        ->flags.store(flags | CU_CTX_MAP_HOST, std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags) {
  return api::cuDevicePrimaryCtxSetFlags_v2(dev, flags);
}

}  // namespace api
}  // namespace gpupool::guest
