// Modules: loading, look-ups, unloading. A module belongs to one context; libraries are in library.cpp.
#include "guest/runtime/manual/module.hpp"

#include <algorithm>
#include <unordered_set>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/function.hpp"
#include "guest/runtime/manual/image.hpp"
#include "guest/runtime/manual/look_up.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

namespace {

// Every live module, so that a context can take its own along.
struct Registry {
  std::mutex mutex;
  std::unordered_set<Module*> modules;
};

Registry& registry() {
  static auto& all = *new Registry();  // programs unload modules from exit handlers
  return all;
}

std::vector<Module*> modules_of(const Context& context) {
  std::vector<Module*> found;
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  for (Module* module : all.modules)
    if (module->context == &context) found.push_back(module);
  return found;
}

CUresult load(CUmodule* out, const Image& image, JitOptions& options) {
  Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  Module* module = make_module(*context, nullptr);
  if (module == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = load_image(wire::Function::cuModuleLoadDataEx, module->handle, image, options);
  if (result != CUDA_SUCCESS) {
    destroy_module(module);
    return result;
  }
  *out = reinterpret_cast<CUmodule>(module);
  return CUDA_SUCCESS;
}

CUresult load_from(CUmodule* out, const void* address, unsigned int count, CUjit_option* options,
                   void** values) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Image image;
  if (const CUresult result = find_image(address, image); result != CUDA_SUCCESS) return result;
  JitOptions jit;
  if (const CUresult result = jit.read(count, options, values); result != CUDA_SUCCESS) return result;
  return load(out, image, jit);
}

}  // namespace

Module* make_module(Context& context, Library* library) {
  const wire::Handle handle = handles(wire::HandleKind::module).take();
  if (!handle) return nullptr;
  Module* module = g_modules.create();
  if (module == nullptr) {
    handles(wire::HandleKind::module).give_back(handle);
    return nullptr;
  }
  module->handle = handle;
  module->context = &context;
  module->library = library;
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  all.modules.insert(module);
  return module;
}

void destroy_module(Module* module) {
  {
    Registry& all = registry();
    const std::lock_guard lock(all.mutex);
    if (all.modules.erase(module) == 0) return;  // another thread was faster
  }
  for (const auto& [name, function] : module->functions) destroy_function(function);
  for (const auto& [name, global] : module->globals)
    address_space().take(global.address, {MemoryKind::global});
  const wire::Handle handle = module->handle;
  g_modules.destroy(module);
  handles(wire::HandleKind::module).give_back(handle);
}

void forget_modules(Context& context) {
  for (Module* module : modules_of(context)) {
    if (module->library != nullptr) forget_library_module(*module);
    destroy_module(module);
  }
}

void unload_modules(Context& context) {
  for (Module* module : modules_of(context)) {
    if (module->library != nullptr) {
      forget_library_module(*module);
    } else {
      Call call(wire::Function::cuModuleUnload);
      call.put(module->handle);
      if (call.send() != CUDA_SUCCESS) log_debug("a module could not be unloaded: the session has ended");
    }
    destroy_module(module);
  }
}

CUresult find_function(Module& module, const char* name, LookUp how, Function*& function) {
  const std::lock_guard lock(module.mutex);
  if (const auto known = module.functions.find(name); known != module.functions.end()) {
    function = known->second;
    return CUDA_SUCCESS;
  }
  Function* made = make_function(name);
  if (made == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  made->context = module.context;
  made->module = &module;
  made->library = module.library;
  const CUresult result = look_up(module.look_ups, *made, how, module.context->device);
  if (result != CUDA_SUCCESS) {
    destroy_function(made);
    return result;
  }
  module.functions.emplace(name, made);
  function = made;
  return CUDA_SUCCESS;
}

CUresult function_names(wire::Function message, wire::Handle owner, std::vector<std::string>& names) {
  // The first answer says how long the second will be.
  u64 room = 0;
  for (int attempt = 0; attempt < 2; ++attempt) {
    Call call(message);
    call.put(owner);
    call.put<u64>(room);
    call.expect_answer(room + 64);
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    const u64 needed = call.get<u64>();
    if (room < needed) {
      room = needed;
      continue;
    }
    std::vector<char> text(needed);
    if (call.get_array(text.data(), text.size()) != needed) return CUDA_ERROR_UNKNOWN;
    for (auto begin = text.begin(); begin != text.end();) {
      const auto end = std::find(begin, text.end(), '\0');
      names.emplace_back(begin, end);
      begin = end == text.end() ? end : end + 1;
    }
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_UNKNOWN;  // the list grew between two questions: nothing adds functions to a module
}

CUresult answer_global(const Global& global, CUdeviceptr* address, size_t* bytes) {
  if (address != nullptr) *address = global.address;
  if (bytes != nullptr) *bytes = global.bytes;
  return CUDA_SUCCESS;
}

CUresult ask_global(wire::Function message, wire::Handle owner, const char* name, Context& context,
                    Global& global) {
  Call call(message);
  call.put(owner);
  call.put_string(name);
  const CUresult result = call.wait();
  if (result == CUDA_ERROR_NOT_SUPPORTED)
    log_line(
        "variable %s is __managed__: it cannot be shared with a vGPU; allocate it with cudaMallocManaged",
        name);
  if (result != CUDA_SUCCESS) return result;
  global.address = call.get<u64>();
  global.bytes = call.get<u64>();
  Allocation allocation;
  allocation.address = global.address;
  allocation.size = global.bytes;
  allocation.kind = MemoryKind::global;
  allocation.context = &context;
  allocation.device = context.device;
  // A variable of no bytes has an address but no memory.
  if (global.bytes != 0 && !adopt_device_memory(allocation))
    log_line(
        "variable %s lies at %llx, which this program uses for something else: it cannot be told apart from "
        "host memory",
        name, static_cast<unsigned long long>(global.address));
  return CUDA_SUCCESS;
}

namespace api {

CUresult cuModuleLoad(CUmodule* module, const char* fname) {
  std::vector<u8> bytes;
  if (const CUresult result = read_image_file(fname, bytes); result != CUDA_SUCCESS) return result;
  return load_from(module, bytes.data(), 0, nullptr, nullptr);
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return load_from(module, image, 0, nullptr, nullptr);
}

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned int numOptions,
                            CUjit_option* options, void** optionValues) {
  return load_from(module, image, numOptions, options, optionValues);
}

CUresult cuModuleLoadFatBinary(CUmodule* module, const void* fatCubin) {
  return load_from(module, fatCubin, 0, nullptr, nullptr);
}

CUresult cuModuleUnload(CUmodule hmod) {
  Module* module = find(hmod);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (module->library != nullptr) return CUDA_ERROR_NOT_PERMITTED;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuModuleUnload);
  call.put(module->handle);
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  destroy_module(module);
  return CUDA_SUCCESS;
}

// Functions are loaded as they are looked up, whatever the image's size.
CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  if (mode == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *mode = CU_MODULE_LAZY_LOADING;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* hfunc, CUmodule hmod, const char* name) {
  if (hfunc == nullptr || name == nullptr || *name == 0) return CUDA_ERROR_INVALID_VALUE;
  Module* module = find(hmod);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Function* function = nullptr;
  const CUresult result = find_function(*module, name, LookUp::ask, function);
  if (result == CUDA_SUCCESS) *hfunc = reinterpret_cast<CUfunction>(function);
  return result;
}

CUresult cuModuleGetFunctionCount(unsigned int* count, CUmodule mod) {
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Module* module = find(mod);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  Call call(wire::Function::cuModuleGetFunctionCount);
  call.put(module->handle);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) *count = call.get<u32>();
  return result;
}

CUresult cuModuleEnumerateFunctions(CUfunction* functions, unsigned int numFunctions, CUmodule mod) {
  if (functions == nullptr || numFunctions == 0) return CUDA_ERROR_INVALID_VALUE;
  Module* module = find(mod);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  std::vector<std::string> names;
  CUresult result = function_names(wire::Function::cuModuleEnumerateFunctions, module->handle, names);
  for (u64 i = 0; i < names.size() && i < numFunctions && result == CUDA_SUCCESS; ++i) {
    Function* function = nullptr;
    result = find_function(*module, names[i].c_str(), LookUp::listed, function);
    functions[i] = reinterpret_cast<CUfunction>(function);
  }
  return result;
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr* dptr, size_t* bytes, CUmodule hmod, const char* name) {
  if ((dptr == nullptr && bytes == nullptr) || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Module* module = find(hmod);
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const std::lock_guard lock(module->mutex);
  if (const auto known = module->globals.find(name); known != module->globals.end())
    return answer_global(known->second, dptr, bytes);
  Global global;
  const CUresult result =
      ask_global(wire::Function::cuModuleGetGlobal_v2, module->handle, name, *module->context, global);
  if (result != CUDA_SUCCESS) return result;
  module->globals.emplace(name, global);
  return answer_global(global, dptr, bytes);
}

}  // namespace api

}  // namespace gpupool::guest
