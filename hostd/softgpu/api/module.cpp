// Modules: loading, their functions and variables.
#include "hostd/softgpu/api/module.hpp"

#include <fstream>
#include <iterator>

#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

namespace {

CUmodule load(const void* image, const JitOptions& options) {
  const auto context = current_context();
  const std::string ptx = ptx_of(image, options);
  const auto module = make_module(context, program_of(ptx, options));
  return modules().add(module);
}

// Finds a variable by name; npos when there is none.
u64 global_index(const Program& program, const std::string& name) {
  const auto globals = program.globals();
  for (u64 i = 0; i < globals.size(); ++i)
    if (globals[i].name == name) return i;
  return ~0ull;
}

}  // namespace

Registry<Module, CUmodule>& modules() {
  static auto* registry = new Registry<Module, CUmodule>(5);
  return *registry;
}

Registry<Function, CUfunction>& functions() {
  static auto* registry = new Registry<Function, CUfunction>(6);
  return *registry;
}

std::shared_ptr<Module> make_module(const std::shared_ptr<Context>& context,
                                    std::shared_ptr<Program> program) {
  auto module = std::make_shared<Module>();
  module->context = context;
  module->program = std::move(program);
  const auto globals = module->program->globals();
  try {
    for (u64 i = 0; i < globals.size(); ++i) {
      const u64 bytes = std::max<u64>(globals[i].size, 1);  // an extern array of unknown length has none
      module->addresses.push_back(allocate_device(*context, bytes, MemoryKind::global).base);
      module->program->bind(i, module->addresses.back());
    }
    module->program->finish_binding();
  } catch (...) {
    for (const u64 address : module->addresses)
      if (const auto taken = memory_table().take(address)) release_device(*taken);
    throw;
  }
  return module;
}

std::shared_ptr<Function> function_of(const std::shared_ptr<Module>& module, const std::string& name) {
  const std::lock_guard lock(module->mutex);
  if (const auto found = module->functions.find(name); found != module->functions.end()) return found->second;
  const auto infos = module->program->kernels();
  for (u64 i = 0; i < infos.size(); ++i) {
    if (infos[i].name != name) continue;
    auto function = std::make_shared<Function>();
    function->module = module;
    function->context = module->context;
    function->program = module->program;
    function->index = i;
    const auto shared = module->settings.find(name);
    function->settings =
        shared != module->settings.end() ? shared->second : std::make_shared<FunctionSettings>();
    functions().add(function);
    module->functions.emplace(name, function);
    return function;
  }
  fail(CUDA_ERROR_NOT_FOUND);
}

void remove_module(const std::shared_ptr<Module>& module) {
  modules().take(module->handle);
  const std::lock_guard lock(module->mutex);
  for (const auto& [name, function] : module->functions) functions().take(function->handle);
  module->functions.clear();
  for (const u64 address : module->addresses)
    if (const auto taken = memory_table().take(address)) release_device(*taken);
  module->addresses.clear();
}

void unload_modules(Context& context) {
  for (const auto& module : modules().all())
    if (module->context.get() == &context) remove_module(module);
  drop_library_modules(context);
}

GPUPOOL_CUDA CUresult cuModuleLoadData(CUmodule* out, const void* image) {
  return call([&] {
    require(out != nullptr);
    *out = load(image, {});
  });
}

GPUPOOL_CUDA CUresult cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned int count,
                                         CUjit_option* options, void** values) {
  return call([&] {
    require(out != nullptr && (count == 0 || (options != nullptr && values != nullptr)));
    *out = load(image, {count, options, values});
  });
}

GPUPOOL_CUDA CUresult cuModuleLoadFatBinary(CUmodule* out, const void* image) {
  return call([&] {
    require(out != nullptr);
    *out = load(image, {});
  });
}

GPUPOOL_CUDA CUresult cuModuleLoad(CUmodule* out, const char* path) {
  return call([&] {
    require(out != nullptr && path != nullptr);
    std::ifstream file(path, std::ios::binary);
    require(file.is_open(), CUDA_ERROR_FILE_NOT_FOUND);
    const std::string image{std::istreambuf_iterator<char>(file), {}};
    require(!file.bad(), CUDA_ERROR_FILE_NOT_FOUND);
    *out = load(image.c_str(), {});
  });
}

GPUPOOL_CUDA CUresult cuModuleUnload(CUmodule handle) {
  return call([&] {
    const auto module = modules().get(handle);
    require(module->library == nullptr, CUDA_ERROR_NOT_PERMITTED);
    module->context->synchronize();
    remove_module(module);
  });
}

GPUPOOL_CUDA CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  return call([&] {
    require(mode != nullptr);
    *mode = CU_MODULE_EAGER_LOADING;  // an image is parsed whole when it is loaded
  });
}

GPUPOOL_CUDA CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
  return call([&] {
    require(out != nullptr && name != nullptr);
    const auto module = modules().get(handle);
    module->context->require_healthy();
    *out = function_of(module, name)->handle;
  });
}

GPUPOOL_CUDA CUresult cuModuleGetFunctionCount(unsigned int* count, CUmodule handle) {
  return call([&] {
    require(count != nullptr);
    *count = static_cast<u32>(modules().get(handle)->program->kernels().size());
  });
}

GPUPOOL_CUDA CUresult cuModuleEnumerateFunctions(CUfunction* out, unsigned int count, CUmodule handle) {
  return call([&] {
    require(out != nullptr);
    const auto module = modules().get(handle);
    const auto infos = module->program->kernels();
    for (u32 i = 0; i < count && i < infos.size(); ++i) out[i] = function_of(module, infos[i].name)->handle;
  });
}

CUresult find_global(const std::shared_ptr<Module>& module, CUdeviceptr* address, size_t* bytes,
                     const char* name) {
  require((address != nullptr || bytes != nullptr) && name != nullptr);
  const u64 index = global_index(*module->program, name);
  require(index != ~0ull, CUDA_ERROR_NOT_FOUND);
  if (address != nullptr) *address = module->addresses[index];
  if (bytes != nullptr) *bytes = module->program->globals()[index].size;
  return CUDA_SUCCESS;
}

GPUPOOL_CUDA CUresult cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, CUmodule handle,
                                           const char* name) {
  return call([&] { return find_global(modules().get(handle), address, bytes, name); });
}

}  // namespace gpupool::softgpu
