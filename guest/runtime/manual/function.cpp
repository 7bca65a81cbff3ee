// Functions and kernels: descriptions, attributes, names. See function.hpp.
#include "guest/runtime/manual/function.hpp"

#include <algorithm>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/look_up.hpp"
#include "guest_api.hpp"
#include "wire/cpp/launch_message.hpp"

namespace gpupool::guest {

namespace {

// Descriptions are written once a function and device; one lock for all of them.
std::mutex& description_mutex() {
  static auto& mutex = *new std::mutex();
  return mutex;
}

// What a description carries after its parameters. The order is the worker's (manual/function.cpp there).
void install_attributes(Function& function, int device, const i32* values) {
  std::atomic<FunctionOnDevice*>& place = function.on_device[static_cast<u32>(device)];
  if (place.load(std::memory_order_relaxed) != nullptr) return;
  auto* facts = new FunctionOnDevice();
  for (u32 i = 0; i < FunctionOnDevice::kAttributes; ++i) {
    facts->attributes[i].store(values[i], std::memory_order_relaxed);
    facts->kernel_attributes[i].store(values[i], std::memory_order_relaxed);
  }
  place.store(facts, std::memory_order_release);
}

bool described_on(const Function& function, int device) {
  return function.described.load(std::memory_order_acquire) &&
         function.on_device[static_cast<u32>(device)].load(std::memory_order_acquire) != nullptr;
}

CUresult ask_description(Function& function, int device) {
  CUresult result = CUDA_SUCCESS;
  if (device >= 0 && function.pending.load(std::memory_order_acquire)) {
    if (result = describe_pending(function, device); result != CUDA_SUCCESS) return result;
    if (described_on(function, device)) return CUDA_SUCCESS;
  }
  for (const u64 room : {u64{0}, wire::kMaxDescriptionBytes}) {
    Call call(wire::Function::function_describe);
    call.put(function.handle);
    call.put<i32>(device < 0 ? -1 : session_device(device));
    call.expect_answer(room);
    if (result = call.wait(); result != CUDA_SUCCESS) return result;
    if (result = read_description(call, function, device); result != CUDA_ERROR_NOT_READY) return result;
  }
  return CUDA_ERROR_INVALID_IMAGE;  // no kernel has more parameters than that
}

// The parameters' places, checked: they are written into buffers of `bytes` bytes.
CUresult read_parameters(Call& call, const Function& function, std::vector<Parameter>& parameters,
                         u32& bytes) {
  parameters.resize(wire::kMaxParameters);
  const u64 count = call.get_array(parameters.data(), parameters.size());
  if (count > parameters.size()) return CUDA_ERROR_UNKNOWN;
  parameters.resize(count);
  parameters.shrink_to_fit();
  for (const Parameter& parameter : parameters) {
    if (parameter.size > wire::kMaxParameterBytes ||
        parameter.offset > wire::kMaxParameterBytes - parameter.size) {
      log_line("the worker describes kernel %s with a parameter at %u of %u bytes", function.name.c_str(),
               parameter.offset, parameter.size);
      return CUDA_ERROR_INVALID_IMAGE;
    }
    bytes = std::max(bytes, parameter.offset + parameter.size);
  }
  return CUDA_SUCCESS;
}

bool valid_attribute(CUfunction_attribute attribute) {
  return static_cast<u32>(attribute) < FunctionOnDevice::kAttributes;
}

CUresult check_device(CUdevice device) {
  return session_device(device) < 0 ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult parameter_info(Function& function, size_t index, size_t* offset, size_t* size) {
  if (offset == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = describe_parameters(function); result != CUDA_SUCCESS) return result;
  if (index >= function.parameters.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = function.parameters[index].offset;
  if (size != nullptr) *size = function.parameters[index].size;
  return CUDA_SUCCESS;
}

// Sets an attribute in the worker and refreshes what we know of the others, which may depend on it.
CUresult set_attribute(wire::Function message, Function& function, CUfunction_attribute attribute, int value,
                       int device) {
  const bool on_kernel = message == wire::Function::cuKernelSetAttribute;
  if (!valid_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  FunctionOnDevice* facts = facts_on(function, device, error);
  if (facts == nullptr) return error;
  const u32 mask = 1u << attribute;
  const std::atomic<i32>& known =
      on_kernel ? facts->kernel_attributes[attribute] : facts->attributes[attribute];
  // Libraries set the same value before every launch: the driver need not hear it again. A function's own
  // override must be heard once even when it repeats the kernel's value.
  const bool settled = on_kernel || function.context != nullptr || (facts->overridden.load() & mask) != 0;
  if (settled && known.load(std::memory_order_relaxed) == value &&
      attribute >= CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    return CUDA_SUCCESS;
  Call call(message);
  call.put(function.handle);
  call.put<i32>(session_device(device));
  call.put<u32>(static_cast<u32>(attribute));
  call.put<i32>(value);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  i32 values[FunctionOnDevice::kAttributes];
  if (call.get_array(values, FunctionOnDevice::kAttributes) != FunctionOnDevice::kAttributes)
    return CUDA_ERROR_UNKNOWN;
  if (!on_kernel) facts->overridden.fetch_or(mask);
  const u32 overridden = facts->overridden.load();
  for (u32 i = 0; i < FunctionOnDevice::kAttributes; ++i) {
    if (on_kernel) facts->kernel_attributes[i].store(values[i], std::memory_order_relaxed);
    if (!on_kernel || (overridden & (1u << i)) == 0)
      facts->attributes[i].store(values[i], std::memory_order_relaxed);
  }
  function.epoch.fetch_add(1, std::memory_order_release);
  return CUDA_SUCCESS;
}

CUresult get_attribute(int* out, CUfunction_attribute attribute, Function& function, int device,
                       bool of_kernel) {
  if (out == nullptr || !valid_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const FunctionOnDevice* facts = facts_on(function, device, error);
  if (facts == nullptr) return error;
  const i32 value =
      (of_kernel ? facts->kernel_attributes : facts->attributes)[attribute].load(std::memory_order_relaxed);
  if (value == FunctionOnDevice::kUnknown) return CUDA_ERROR_INVALID_VALUE;
  *out = value;
  return CUDA_SUCCESS;
}

}  // namespace

Function* make_function(std::string_view name) {
  const wire::Handle handle = handles(wire::HandleKind::function).take();
  if (!handle) return nullptr;
  Function* function = g_functions.create([&](Function& fresh) { fresh.handle = handle; });
  if (function == nullptr) {
    handles(wire::HandleKind::function).give_back(handle);
    return nullptr;
  }
  function->name = name;
  return function;
}

void destroy_function(Function* function) {
  const wire::Handle handle = function->handle;
  g_functions.destroy(function);
  handles(wire::HandleKind::function).give_back(handle);
}

CUresult device_of(const Function& function, int& device) {
  const Context* context = function.context != nullptr ? function.context : current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  device = context->device;
  return CUDA_SUCCESS;
}

CUresult read_description(Call& call, Function& function, int device) {
  const auto laid_out = static_cast<CUresult>(call.get<i32>());
  std::vector<Parameter> parameters;
  u32 bytes = 0;
  if (laid_out == CUDA_SUCCESS) {
    if (const CUresult result = read_parameters(call, function, parameters, bytes); result != CUDA_SUCCESS)
      return result;
  }
  i32 values[FunctionOnDevice::kAttributes];
  const auto known = static_cast<CUresult>(call.get<i32>());
  if (known == CUDA_SUCCESS && device >= 0 &&
      call.get_array(values, FunctionOnDevice::kAttributes) != FunctionOnDevice::kAttributes)
    return CUDA_ERROR_UNKNOWN;
  const std::lock_guard lock(description_mutex());
  if (laid_out == CUDA_SUCCESS && !function.described.load(std::memory_order_relaxed)) {
    function.parameters = std::move(parameters);
    function.parameter_bytes = bytes;
    function.described.store(true, std::memory_order_release);
  }
  if (known == CUDA_SUCCESS && device >= 0) install_attributes(function, device, values);
  return laid_out != CUDA_SUCCESS ? laid_out : known;
}

FunctionOnDevice* describe(Function& function, int device, CUresult& error) {
  error = ask_description(function, device);
  FunctionOnDevice* facts = function.on_device[static_cast<u32>(device)].load(std::memory_order_acquire);
  if (facts != nullptr) error = CUDA_SUCCESS;
  return facts;
}

CUresult describe_parameters(Function& function) {
  if (function.described.load(std::memory_order_acquire)) return CUDA_SUCCESS;
  int device = -1;
  if (device_of(function, device) != CUDA_SUCCESS) device = -1;  // the layout needs no device
  return ask_description(function, device);
}

namespace api {

CUresult cuFuncGetAttribute(int* pi, CUfunction_attribute attrib, CUfunction hfunc) {
  Function* function = find(hfunc);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*function, device); result != CUDA_SUCCESS) return result;
  return get_attribute(pi, attrib, *function, device, false);
}

CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value) {
  Function* function = find(hfunc);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*function, device); result != CUDA_SUCCESS) return result;
  return set_attribute(wire::Function::cuFuncSetAttribute, *function, attrib, value, device);
}

CUresult cuKernelGetAttribute(int* pi, CUfunction_attribute attrib, CUkernel kernel, CUdevice dev) {
  Function* function = find(kernel);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_device(dev); result != CUDA_SUCCESS) return result;
  return get_attribute(pi, attrib, *function, dev, true);
}

CUresult cuKernelSetAttribute(CUfunction_attribute attrib, int val, CUkernel kernel, CUdevice dev) {
  Function* function = find(kernel);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_device(dev); result != CUDA_SUCCESS) return result;
  return set_attribute(wire::Function::cuKernelSetAttribute, *function, attrib, val, dev);
}

CUresult cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config) {
  Function* function = find(hfunc);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (static_cast<u32>(config) > CU_FUNC_CACHE_PREFER_EQUAL) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuFuncSetCacheConfig);
  call.put(function->handle);
  call.put<u32>(static_cast<u32>(config));
  return call.send();
}

CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice dev) {
  Function* function = find(kernel);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_device(dev); result != CUDA_SUCCESS) return result;
  if (static_cast<u32>(config) > CU_FUNC_CACHE_PREFER_EQUAL) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuKernelSetCacheConfig);
  call.put(function->handle);
  call.put<i32>(session_device(dev));
  call.put<u32>(static_cast<u32>(config));
  return call.send();
}

// Bank sizes have been fixed since Maxwell: the driver accepts the call and does nothing.
CUresult cuFuncSetSharedMemConfig(CUfunction hfunc, CUsharedconfig config) {
  if (find(hfunc) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return static_cast<u32>(config) <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE ? CUDA_SUCCESS
                                                                               : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuFuncGetParamInfo(CUfunction func, size_t paramIndex, size_t* paramOffset, size_t* paramSize) {
  Function* function = find(func);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return parameter_info(*function, paramIndex, paramOffset, paramSize);
}

CUresult cuKernelGetParamInfo(CUkernel kernel, size_t paramIndex, size_t* paramOffset, size_t* paramSize) {
  Function* function = find(kernel);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return parameter_info(*function, paramIndex, paramOffset, paramSize);
}

CUresult cuFuncGetName(const char** name, CUfunction hfunc) {
  if (name == nullptr || hfunc == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Function* function = find(hfunc);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *name = function->name.c_str();
  return CUDA_SUCCESS;
}

CUresult cuKernelGetName(const char** name, CUkernel hfunc) {
  return api::cuFuncGetName(name, reinterpret_cast<CUfunction>(hfunc));
}

CUresult cuKernelGetLibrary(CUlibrary* pLib, CUkernel kernel) {
  if (pLib == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Function* function = find(kernel);
  if (function == nullptr || function->library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *pLib = reinterpret_cast<CUlibrary>(function->library);
  return CUDA_SUCCESS;
}

// One object stands for a kernel and for its function in every context, so this is a check and a cast.
CUresult cuKernelGetFunction(CUfunction* pFunc, CUkernel kernel) {
  if (pFunc == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Function* function = find(kernel);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  *pFunc = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetModule(CUmodule* hmod, CUfunction hfunc) {
  if (hmod == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Function* function = find(hfunc);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (function->library != nullptr)
    return api::cuLibraryGetModule(hmod, reinterpret_cast<CUlibrary>(function->library));
  *hmod = reinterpret_cast<CUmodule>(function->module);
  return CUDA_SUCCESS;
}

// A description makes the driver load the function, so "described here" and "loaded there" are the same.
CUresult cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction function) {
  if (state == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Function* found = find(function);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*found, device); result != CUDA_SUCCESS) return result;
  // A look-up loads the function, also one that was not waited for.
  if (found->pending.load(std::memory_order_acquire)) {
    CUresult error = CUDA_SUCCESS;
    if (facts_on(*found, device, error) == nullptr) return error;
  }
  *state = found->on_device[static_cast<u32>(device)].load(std::memory_order_acquire) != nullptr
               ? CU_FUNCTION_LOADING_STATE_LOADED
               : CU_FUNCTION_LOADING_STATE_UNLOADED;
  return CUDA_SUCCESS;
}

CUresult cuFuncLoad(CUfunction function) {
  Function* found = find(function);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*found, device); result != CUDA_SUCCESS) return result;
  CUresult error = CUDA_SUCCESS;
  return facts_on(*found, device, error) != nullptr ? CUDA_SUCCESS : error;
}

}  // namespace api

}  // namespace gpupool::guest
