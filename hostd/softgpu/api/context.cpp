// Contexts: making, destroying, the primary one of each device, what is set and asked of them.
#include "hostd/softgpu/api/context.hpp"

#include "hostd/softgpu/api/array.hpp"
#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/graphics.hpp"
#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/module.hpp"
#include "hostd/softgpu/api/thread_contexts.hpp"

namespace gpupool::softgpu {

namespace {

// The primary context of one device. The object stays for the life of the process, as its handle does.
struct Primary {
  std::mutex mutex;
  std::shared_ptr<Context> context;
  u32 references = 0;
  u32 flags = 0;
};

Primary& primary_of(CUdevice ordinal) {
  static auto* all = new std::array<Primary, kMaxDevices>;
  return (*all)[static_cast<u32>(device_of(ordinal).ordinal)];
}

void set_default_limits(Context& context) {
  context.limits[CU_LIMIT_STACK_SIZE] = 1024;
  context.limits[CU_LIMIT_PRINTF_FIFO_SIZE] = 1u << 20;
  context.limits[CU_LIMIT_MALLOC_HEAP_SIZE] = 8u << 20;
  context.limits[CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2;
  context.limits[CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048;
  context.limits[CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64;
  context.limits[CU_LIMIT_PERSISTING_L2_CACHE_SIZE] = 0;
}

constexpr u32 kContextFlags =
    CU_CTX_SCHED_MASK | CU_CTX_MAP_HOST | CU_CTX_LMEM_RESIZE_TO_MAX | CU_CTX_SYNC_MEMOPS;

void require_flags(u32 flags) {
  require((flags & ~kContextFlags) == 0);
  const u32 schedule = flags & CU_CTX_SCHED_MASK;
  require(schedule == 0 || (schedule & (schedule - 1)) == 0);
}

std::shared_ptr<Context> make_context(Device& device, u32 flags, bool primary) {
  static std::atomic<u64> next_id{1};
  auto context = std::make_shared<Context>();
  context->device = &device;
  context->flags = flags;
  context->primary = primary;
  context->id = next_id.fetch_add(1);
  set_default_limits(*context);
  context->legacy = make_stream(context, CU_STREAM_DEFAULT, 0);
  context->legacy->legacy = context->legacy->implicit = true;
  context->legacy->handle = CU_STREAM_LEGACY;
  context->streams.push_back(context->legacy);
  contexts().add(context);
  return context;
}

// Ends everything that was made in the context. Waits for work that runs; what still waits on memory gives
// up.
void empty_context(Context& context) {
  context.destroyed.store(true);
  context.synchronize();
  close_streams(context);
  drop_events(context);
  drop_graphics(context);
  drop_arrays(context);
  unload_modules(context);
  free_context_memory(context);
  see_frees();
}

void create(CUcontext* out, u32 flags, CUdevice ordinal) {
  require(out != nullptr);
  require_flags(flags);
  const auto context = make_context(device_of(ordinal), flags, false);
  push_context(context);
  *out = context->handle;
}

CUresult release_primary(CUdevice ordinal) {
  Primary& primary = primary_of(ordinal);
  const std::lock_guard lock(primary.mutex);
  require(primary.references != 0, CUDA_ERROR_INVALID_CONTEXT);
  if (--primary.references == 0) empty_context(*primary.context);
  return CUDA_SUCCESS;
}

CUresult reset_primary(CUdevice ordinal) {
  Primary& primary = primary_of(ordinal);
  const std::lock_guard lock(primary.mutex);
  if (!primary.context || primary.references == 0) return CUDA_SUCCESS;
  empty_context(*primary.context);
  primary.context->fault.store(CUDA_SUCCESS);
  set_default_limits(*primary.context);
  primary.context->destroyed.store(false);  // who retained it goes on with an empty one
  return CUDA_SUCCESS;
}

CUresult set_primary_flags(CUdevice ordinal, u32 flags) {
  require_flags(flags);
  Primary& primary = primary_of(ordinal);
  const std::lock_guard lock(primary.mutex);
  primary.flags = flags;
  if (primary.context) primary.context->flags.store(flags);
  return CUDA_SUCCESS;
}

}  // namespace

Registry<Context, CUcontext>& contexts() {
  static auto* registry = new Registry<Context, CUcontext>(2);
  return *registry;
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice ordinal) {
  return call([&] {
    require(out != nullptr);
    Primary& primary = primary_of(ordinal);
    const std::lock_guard lock(primary.mutex);
    if (!primary.context) primary.context = make_context(device_of(ordinal), primary.flags, true);
    if (primary.references++ == 0) {
      primary.context->fault.store(CUDA_SUCCESS);
      primary.context->flags.store(primary.flags);
      set_default_limits(*primary.context);
      primary.context->destroyed.store(false);
    }
    *out = primary.context->handle;
  });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxRelease(CUdevice ordinal) {
  return call([&] { return release_primary(ordinal); });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
  return call([&] { return release_primary(ordinal); });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxReset(CUdevice ordinal) {
  return call([&] { return reset_primary(ordinal); });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
  return call([&] { return reset_primary(ordinal); });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned int flags) {
  return call([&] { return set_primary_flags(ordinal, flags); });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned int flags) {
  return call([&] { return set_primary_flags(ordinal, flags); });
}

GPUPOOL_CUDA CUresult cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned int* flags, int* active) {
  return call([&] {
    require(flags != nullptr && active != nullptr);
    Primary& primary = primary_of(ordinal);
    const std::lock_guard lock(primary.mutex);
    *flags = primary.flags;
    *active = primary.references != 0 ? 1 : 0;
  });
}

GPUPOOL_CUDA CUresult cuCtxCreate_v2(CUcontext* out, unsigned int flags, CUdevice ordinal) {
  return call([&] { create(out, flags, ordinal); });
}

GPUPOOL_CUDA CUresult cuCtxCreate_v3(CUcontext* out, CUexecAffinityParam* affinity, int count,
                                     unsigned int flags, CUdevice ordinal) {
  return call([&] {
    require(affinity == nullptr && count == 0, CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
    create(out, flags, ordinal);
  });
}

GPUPOOL_CUDA CUresult cuCtxCreate_v4(CUcontext* out, CUctxCreateParams* parameters, unsigned int flags,
                                     CUdevice ordinal) {
  return call([&] {
    if (parameters != nullptr) {
      require(parameters->numExecAffinityParams == 0, CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
      require(parameters->cigParams == nullptr, CUDA_ERROR_NOT_SUPPORTED);
    }
    create(out, flags, ordinal);
  });
}

GPUPOOL_CUDA CUresult cuCtxDestroy_v2(CUcontext handle) {
  return call([&] {
    const auto found = contexts().get(handle, CUDA_ERROR_INVALID_CONTEXT);
    require(!found->primary, CUDA_ERROR_INVALID_CONTEXT);
    const auto context = contexts().take(handle);
    require(context != nullptr, CUDA_ERROR_INVALID_CONTEXT);
    empty_context(*context);
    std::shared_ptr<Stream> legacy;  // it and the context hold each other
    {
      const std::lock_guard lock(context->submit_mutex);
      legacy.swap(context->legacy);
    }
    legacy->close();
    forget_context(*context);
  });
}

}  // namespace gpupool::softgpu
