// What functions and kernels say about themselves, and what can be set on them.
#include "hostd/softgpu/api/launch.hpp"
#include "hostd/softgpu/api/module.hpp"

namespace gpupool::softgpu {

namespace {

int attribute_of(const KernelInfo& info, const FunctionSettings& settings, CUfunction_attribute attribute) {
  const auto fixed = static_cast<int>(info.static_shared_bytes);
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      return static_cast<int>(std::min(info.max_threads, kMaxThreadsPerBlock));
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      return fixed;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
      return 0;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      return static_cast<int>(info.local_bytes);
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      return static_cast<int>(info.registers);
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
      return static_cast<int>(info.target);
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      return static_cast<int>(kArchitecture);
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
      return 0;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      return std::max(static_cast<int>(kSharedPerBlock) - fixed, settings.max_dynamic_shared.load());
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      return settings.carveout.load();
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
      return 0;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
      return settings.non_portable_cluster.load();
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      return settings.cluster_policy.load();
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

void set_attribute(const KernelInfo& info, FunctionSettings& settings, CUfunction_attribute attribute,
                   int value) {
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      require(value >= 0 && static_cast<u64>(value) + info.static_shared_bytes <= kSharedPerBlockOptin);
      settings.max_dynamic_shared.store(value);
      return;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      require(value >= -1 && value <= 100);
      settings.carveout.store(value);
      return;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
      settings.non_portable_cluster.store(value != 0);
      return;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      settings.cluster_policy.store(value);
      return;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
      fail(CUDA_ERROR_NOT_SUPPORTED);  // compute capability 9.0
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

void parameter_of(const KernelInfo& info, size_t index, size_t* offset, size_t* size) {
  require(offset != nullptr);
  require(index < info.parameters.size());
  *offset = info.parameters[index].offset;
  if (size != nullptr) *size = info.parameters[index].size;
}

struct KernelView {
  std::shared_ptr<Kernel> kernel;
  std::shared_ptr<Library> library;
  const KernelInfo& info() const { return library->program->kernels()[kernel->index]; }
};

KernelView view(CUkernel handle) {
  KernelView result{kernels().get(handle), nullptr};
  result.library = result.kernel->library.lock();
  require(result.library != nullptr, CUDA_ERROR_INVALID_HANDLE);
  return result;
}

}  // namespace

GPUPOOL_CUDA CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  return call([&] {
    require(value != nullptr);
    const auto function = resolve_function(handle);
    *value = attribute_of(function->info(), *function->settings, attribute);
  });
}

GPUPOOL_CUDA CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  return call([&] {
    const auto function = resolve_function(handle);
    set_attribute(function->info(), *function->settings, attribute, value);
  });
}

GPUPOOL_CUDA CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache config) {
  return call([&] {
    require(static_cast<u32>(config) <= CU_FUNC_CACHE_PREFER_EQUAL);
    resolve_function(handle);  // a preference: there is no cache to divide
  });
}

GPUPOOL_CUDA CUresult cuFuncSetSharedMemConfig(CUfunction handle, CUsharedconfig config) {
  return call([&] {
    require(static_cast<u32>(config) <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE);
    resolve_function(handle);  // a preference: there are no banks
  });
}

GPUPOOL_CUDA CUresult cuFuncGetModule(CUmodule* out, CUfunction handle) {
  return call([&] {
    require(out != nullptr);
    const auto module = resolve_function(handle)->module.lock();
    require(module != nullptr, CUDA_ERROR_INVALID_HANDLE);
    *out = module->handle;
  });
}

GPUPOOL_CUDA CUresult cuFuncGetName(const char** name, CUfunction handle) {
  return call([&] {
    require(name != nullptr);
    *name = resolve_function(handle)->info().name.c_str();
  });
}

GPUPOOL_CUDA CUresult cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* size) {
  return call([&] { parameter_of(resolve_function(handle)->info(), index, offset, size); });
}

GPUPOOL_CUDA CUresult cuFuncLoad(CUfunction handle) {
  return call([&] { resolve_function(handle); });
}

GPUPOOL_CUDA CUresult cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction handle) {
  return call([&] {
    require(state != nullptr);
    resolve_function(handle);
    *state = CU_FUNCTION_LOADING_STATE_LOADED;
  });
}

GPUPOOL_CUDA CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel handle,
                                           CUdevice device) {
  return call([&] {
    require(value != nullptr);
    const KernelView kernel = view(handle);
    *value = attribute_of(kernel.info(),
                          *kernel.kernel->settings[static_cast<u32>(device_of(device).ordinal)], attribute);
  });
}

GPUPOOL_CUDA CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel handle,
                                           CUdevice device) {
  return call([&] {
    const KernelView kernel = view(handle);
    set_attribute(kernel.info(), *kernel.kernel->settings[static_cast<u32>(device_of(device).ordinal)],
                  attribute, value);
  });
}

GPUPOOL_CUDA CUresult cuKernelSetCacheConfig(CUkernel handle, CUfunc_cache config, CUdevice device) {
  return call([&] {
    require(static_cast<u32>(config) <= CU_FUNC_CACHE_PREFER_EQUAL);
    view(handle);
    device_of(device);
  });
}

GPUPOOL_CUDA CUresult cuKernelGetName(const char** name, CUkernel handle) {
  return call([&] {
    require(name != nullptr);
    *name = view(handle).kernel->name.c_str();
  });
}

GPUPOOL_CUDA CUresult cuKernelGetParamInfo(CUkernel handle, size_t index, size_t* offset, size_t* size) {
  return call([&] { parameter_of(view(handle).info(), index, offset, size); });
}

}  // namespace gpupool::softgpu
