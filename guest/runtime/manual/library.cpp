// Libraries: code that belongs to no context, its kernels, and its modules and variables in each context.
#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/function.hpp"
#include "guest/runtime/manual/image.hpp"
#include "guest/runtime/manual/look_up.hpp"
#include "guest/runtime/manual/module.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

namespace {

Library* make_library() {
  const wire::Handle handle = handles(wire::HandleKind::library).take();
  if (!handle) return nullptr;
  Library* library = g_libraries.create();
  if (library == nullptr) {
    handles(wire::HandleKind::library).give_back(handle);
    return nullptr;
  }
  library->handle = handle;
  return library;
}

void destroy_library(Library* library) {
  for (const auto& [name, kernel] : library->kernels) destroy_function(kernel);
  for (const auto& [context, module] : library->modules) destroy_module(module);
  for (const auto& [name, global] : library->globals)
    address_space().take(global.address, {MemoryKind::global});
  const wire::Handle handle = library->handle;
  g_libraries.destroy(library);
  handles(wire::HandleKind::library).give_back(handle);
}

// BINARY_IS_PRESERVED is between the worker and its driver. The host function table is for unified function
// pointers, which no x86-64 system has (CU_DEVICE_ATTRIBUTE_UNIFIED_FUNCTION_POINTERS is 0).
CUresult check_library_options(unsigned int count, const CUlibraryOption* options, bool from_file) {
  if (count != 0 && options == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned int i = 0; i < count; ++i) {
    if (static_cast<u32>(options[i]) >= CU_LIBRARY_NUM_OPTIONS) return CUDA_ERROR_INVALID_VALUE;
    if (options[i] == CU_LIBRARY_BINARY_IS_PRESERVED && from_file) return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult load(CUlibrary* out, const void* code, JitOptions& options) {
  Image image;
  if (const CUresult result = find_image(code, image); result != CUDA_SUCCESS) return result;
  Library* library = make_library();
  if (library == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = load_image(wire::Function::cuLibraryLoadData, library->handle, image, options);
  if (result != CUDA_SUCCESS) {
    destroy_library(library);
    return result;
  }
  *out = reinterpret_cast<CUlibrary>(library);
  return CUDA_SUCCESS;
}

}  // namespace

void forget_library_module(const Module& module) {
  const std::lock_guard lock(module.library->mutex);
  std::erase_if(module.library->modules, [&module](const auto& entry) { return entry.second == &module; });
}

CUresult find_kernel(Library& library, const char* name, LookUp how, Function*& kernel) {
  const std::lock_guard lock(library.mutex);
  if (const auto known = library.kernels.find(name); known != library.kernels.end()) {
    kernel = known->second;
    return CUDA_SUCCESS;
  }
  Function* made = make_function(name);
  if (made == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  made->library = &library;
  // Without a context the kernel is found but not loaded: its first use describes it.
  const Context* context = current_context();
  const int device = check_context(context) == CUDA_SUCCESS ? context->device : -1;
  const CUresult result = look_up(library.look_ups, *made, how, device);
  if (result != CUDA_SUCCESS) {
    destroy_function(made);
    return result;
  }
  library.kernels.emplace(name, made);
  kernel = made;
  return CUDA_SUCCESS;
}

namespace api {

CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option* jitOptions,
                           void** jitOptionsValues, unsigned int numJitOptions,
                           CUlibraryOption* libraryOptions, void** libraryOptionValues,
                           unsigned int numLibraryOptions) {
  (void)libraryOptionValues;
  if (library == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = check_library_options(numLibraryOptions, libraryOptions, false);
  JitOptions options;
  if (result == CUDA_SUCCESS) result = options.read(numJitOptions, jitOptions, jitOptionsValues);
  return result == CUDA_SUCCESS ? load(library, code, options) : result;
}

CUresult cuLibraryLoadFromFile(CUlibrary* library, const char* fileName, CUjit_option* jitOptions,
                               void** jitOptionsValues, unsigned int numJitOptions,
                               CUlibraryOption* libraryOptions, void** libraryOptionValues,
                               unsigned int numLibraryOptions) {
  (void)libraryOptionValues;
  if (library == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = check_library_options(numLibraryOptions, libraryOptions, true);
  JitOptions options;
  if (result == CUDA_SUCCESS) result = options.read(numJitOptions, jitOptions, jitOptionsValues);
  std::vector<u8> bytes;
  if (result == CUDA_SUCCESS) result = read_image_file(fileName, bytes);
  return result == CUDA_SUCCESS ? load(library, bytes.data(), options) : result;
}

CUresult cuLibraryUnload(CUlibrary library) {
  Library* found = find(library);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuLibraryUnload);
  call.put(found->handle);
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  destroy_library(found);
  return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel* pKernel, CUlibrary library, const char* name) {
  if (pKernel == nullptr || name == nullptr || *name == 0) return CUDA_ERROR_INVALID_VALUE;
  Library* found = find(library);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Function* kernel = nullptr;
  const CUresult result = find_kernel(*found, name, LookUp::ask, kernel);
  if (result == CUDA_SUCCESS) *pKernel = reinterpret_cast<CUkernel>(kernel);
  return result;
}

CUresult cuLibraryGetKernelCount(unsigned int* count, CUlibrary lib) {
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Library* library = find(lib);
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Call call(wire::Function::cuLibraryGetKernelCount);
  call.put(library->handle);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) *count = call.get<u32>();
  return result;
}

CUresult cuLibraryEnumerateKernels(CUkernel* kernels, unsigned int numKernels, CUlibrary lib) {
  if (kernels == nullptr || numKernels == 0) return CUDA_ERROR_INVALID_VALUE;
  Library* library = find(lib);
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  std::vector<std::string> names;
  CUresult result = function_names(wire::Function::cuLibraryEnumerateKernels, library->handle, names);
  for (u64 i = 0; i < names.size() && i < numKernels && result == CUDA_SUCCESS; ++i) {
    Function* kernel = nullptr;
    result = find_kernel(*library, names[i].c_str(), LookUp::listed, kernel);
    kernels[i] = reinterpret_cast<CUkernel>(kernel);
  }
  return result;
}

CUresult cuLibraryGetModule(CUmodule* pMod, CUlibrary library) {
  if (pMod == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Library* found = find(library);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  const std::lock_guard lock(found->mutex);
  if (const auto known = found->modules.find(context->id); known != found->modules.end()) {
    *pMod = reinterpret_cast<CUmodule>(known->second);
    return CUDA_SUCCESS;
  }
  Module* module = make_module(*context, found);
  if (module == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  Call call(wire::Function::cuLibraryGetModule);
  call.put(found->handle);
  call.put(module->handle);
  CUresult result = call.wait();
  if (result == CUDA_SUCCESS) result = static_cast<CUresult>(call.get<i32>());
  if (result != CUDA_SUCCESS) {
    destroy_module(module);
    return result;
  }
  found->modules.emplace(context->id, module);
  *pMod = reinterpret_cast<CUmodule>(module);
  return CUDA_SUCCESS;
}

CUresult cuLibraryGetGlobal(CUdeviceptr* dptr, size_t* bytes, CUlibrary library, const char* name) {
  if ((dptr == nullptr && bytes == nullptr) || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Library* found = find(library);
  if (found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  const std::lock_guard lock(found->mutex);
  const std::pair<u64, std::string> key(context->id, name);
  if (const auto known = found->globals.find(key); known != found->globals.end())
    return answer_global(known->second, dptr, bytes);
  Global global;
  const CUresult result =
      ask_global(wire::Function::cuLibraryGetGlobal, found->handle, name, *context, global);
  if (result != CUDA_SUCCESS) return result;
  found->globals.emplace(key, global);
  return answer_global(global, dptr, bytes);
}

// Managed variables live where the host's processor can reach them; the client's cannot. Programs ask for
// every variable here first and go on to cuLibraryGetGlobal.
CUresult cuLibraryGetManaged(CUdeviceptr* dptr, size_t* bytes, CUlibrary library, const char* name) {
  if ((dptr == nullptr && bytes == nullptr) || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return find(library) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_NOT_FOUND;
}

// No x86-64 system has unified function pointers, so the driver finds none either.
CUresult cuLibraryGetUnifiedFunction(void** fptr, CUlibrary library, const char* symbol) {
  if (fptr == nullptr || symbol == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return find(library) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_NOT_FOUND;
}

}  // namespace api

}  // namespace gpupool::guest
