// Libraries and their kernels.
#include <fstream>
#include <iterator>

#include "hostd/softgpu/api/module.hpp"

namespace gpupool::softgpu {

namespace {

CUlibrary load(const void* image, const JitOptions& options) {
  auto library = std::make_shared<Library>();
  library->ptx = ptx_of(image, options);
  library->program = program_of(library->ptx, options);
  const auto infos = library->program->kernels();
  for (u64 i = 0; i < infos.size(); ++i) {
    auto kernel = std::make_shared<Kernel>();
    kernel->library = library;
    kernel->index = i;
    kernel->name = infos[i].name;
    for (auto& settings : kernel->settings) settings = std::make_shared<FunctionSettings>();
    kernels().add(kernel);
    library->kernels.push_back(std::move(kernel));
  }
  return libraries().add(std::move(library));
}

std::shared_ptr<Kernel> find_kernel(const Library& library, const std::string& name) {
  for (const auto& kernel : library.kernels)
    if (kernel->name == name) return kernel;
  fail(CUDA_ERROR_NOT_FOUND);
}

JitOptions jit(u32 count, CUjit_option* options, void** values) {
  require(count == 0 || (options != nullptr && values != nullptr));
  return {count, options, values};
}

}  // namespace

Registry<Library, CUlibrary>& libraries() {
  static auto* registry = new Registry<Library, CUlibrary>(7);
  return *registry;
}

Registry<Kernel, CUkernel>& kernels() {
  static auto* registry = new Registry<Kernel, CUkernel>(8);
  return *registry;
}

std::shared_ptr<Module> module_of(const std::shared_ptr<Library>& library,
                                  const std::shared_ptr<Context>& context) {
  const std::lock_guard lock(library->mutex);
  const auto there = library->modules.find(context->id);
  if (there != library->modules.end()) return there->second;
  // Variables have one address a program, so every further context gets a program of its own.
  std::shared_ptr<Program> program = library->program_taken ? program_of(library->ptx, {}) : library->program;
  auto made = make_module(context, std::move(program));
  library->program_taken = true;
  made->library = library->handle;
  for (const auto& kernel : library->kernels)
    made->settings[kernel->name] = kernel->settings[static_cast<u32>(context->device->ordinal)];
  modules().add(made);
  library->modules[context->id] = made;
  return made;
}

std::shared_ptr<Function> function_of(const std::shared_ptr<Kernel>& kernel,
                                      const std::shared_ptr<Context>& context) {
  const auto library = kernel->library.lock();
  require(library != nullptr, CUDA_ERROR_INVALID_HANDLE);
  return function_of(module_of(library, context), kernel->name);
}

std::shared_ptr<Function> resolve_function(CUfunction handle) {
  if (auto function = functions().find(handle)) return function;
  return function_of(kernels().get(reinterpret_cast<CUkernel>(handle)), current_context());
}

void drop_library_modules(const Context& context) {
  for (const auto& library : libraries().all()) {
    const std::lock_guard lock(library->mutex);
    library->modules.erase(context.id);
  }
}

GPUPOOL_CUDA CUresult cuLibraryLoadData(CUlibrary* out, const void* image, CUjit_option* options,
                                        void** values, unsigned int count, CUlibraryOption*, void**,
                                        unsigned int) {
  return call([&] {  // the library options concern how the image is kept; we always copy
    require(out != nullptr);
    *out = load(image, jit(count, options, values));
  });
}

GPUPOOL_CUDA CUresult cuLibraryLoadFromFile(CUlibrary* out, const char* path, CUjit_option* options,
                                            void** values, unsigned int count, CUlibraryOption*, void**,
                                            unsigned int) {
  return call([&] {
    require(out != nullptr && path != nullptr);
    std::ifstream file(path, std::ios::binary);
    require(file.is_open(), CUDA_ERROR_FILE_NOT_FOUND);
    const std::string image{std::istreambuf_iterator<char>(file), {}};
    require(!file.bad(), CUDA_ERROR_FILE_NOT_FOUND);
    *out = load(image.c_str(), jit(count, options, values));
  });
}

GPUPOOL_CUDA CUresult cuLibraryUnload(CUlibrary handle) {
  return call([&] {
    const auto library = libraries().take(handle);
    require(library != nullptr, CUDA_ERROR_INVALID_HANDLE);
    std::map<u64, std::shared_ptr<Module>> loaded;
    {
      const std::lock_guard lock(library->mutex);
      loaded.swap(library->modules);
    }
    for (const auto& [id, module] : loaded) {
      module->context->synchronize();
      remove_module(module);
    }
    for (const auto& kernel : library->kernels) kernels().take(kernel->handle);
  });
}

GPUPOOL_CUDA CUresult cuLibraryGetKernel(CUkernel* out, CUlibrary handle, const char* name) {
  return call([&] {
    require(out != nullptr && name != nullptr);
    *out = find_kernel(*libraries().get(handle), name)->handle;
  });
}

GPUPOOL_CUDA CUresult cuLibraryGetKernelCount(unsigned int* count, CUlibrary handle) {
  return call([&] {
    require(count != nullptr);
    *count = static_cast<u32>(libraries().get(handle)->kernels.size());
  });
}

GPUPOOL_CUDA CUresult cuLibraryEnumerateKernels(CUkernel* out, unsigned int count, CUlibrary handle) {
  return call([&] {
    require(out != nullptr);
    const auto library = libraries().get(handle);
    for (u32 i = 0; i < count && i < library->kernels.size(); ++i) out[i] = library->kernels[i]->handle;
  });
}

GPUPOOL_CUDA CUresult cuLibraryGetModule(CUmodule* out, CUlibrary handle) {
  return call([&] {
    require(out != nullptr);
    *out = module_of(libraries().get(handle), current_context())->handle;
  });
}

GPUPOOL_CUDA CUresult cuLibraryGetGlobal(CUdeviceptr* address, size_t* bytes, CUlibrary handle,
                                         const char* name) {
  return call([&] {
    return find_global(module_of(libraries().get(handle), current_context()), address, bytes, name);
  });
}

GPUPOOL_CUDA CUresult cuLibraryGetManaged(CUdeviceptr*, size_t*, CUlibrary handle, const char* name) {
  return call([&] {
    require(name != nullptr);
    libraries().get(handle);
    fail(CUDA_ERROR_NOT_FOUND);  // the engine loads no .managed variable, so there never is one
  });
}

GPUPOOL_CUDA CUresult cuKernelGetFunction(CUfunction* out, CUkernel handle) {
  return call([&] {
    require(out != nullptr);
    *out = function_of(kernels().get(handle), current_context())->handle;
  });
}

GPUPOOL_CUDA CUresult cuKernelGetLibrary(CUlibrary* out, CUkernel handle) {
  return call([&] {
    require(out != nullptr);
    const auto library = kernels().get(handle)->library.lock();
    require(library != nullptr, CUDA_ERROR_INVALID_HANDLE);
    *out = library->handle;
  });
}

}  // namespace gpupool::softgpu
