// Modules, libraries, functions, kernels. A module is a program with memory of one context; a library is an
// image that becomes a module in each context it is used in. A CUfunction belongs to a module, a CUkernel to
// a library.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hostd/softgpu/api/context.hpp"
#include "hostd/softgpu/engine/engine.hpp"

namespace gpupool::softgpu {

struct Module;
struct Library;

// What cuFuncSetAttribute changes; shared by a kernel and its functions on one device.
struct FunctionSettings {
  std::atomic<int> max_dynamic_shared{0};
  std::atomic<int> carveout{-1};
  std::atomic<int> non_portable_cluster{0};
  std::atomic<int> cluster_policy{0};
};

struct Function {
  CUfunction handle = nullptr;
  std::weak_ptr<Module> module;
  std::shared_ptr<Context> context;
  std::shared_ptr<Program> program;  // keeps the code while launches of it are queued
  u64 index = 0;                     // of program->kernels()
  std::shared_ptr<FunctionSettings> settings;

  const KernelInfo& info() const { return program->kernels()[index]; }
};

struct Module {
  CUmodule handle = nullptr;
  std::shared_ptr<Context> context;
  std::shared_ptr<Program> program;
  std::vector<u64> addresses;   // of program->globals()
  CUlibrary library = nullptr;  // when a library made it: then the program may not unload it
  std::map<std::string, std::shared_ptr<FunctionSettings>>
      settings;  // of a library's module: the kernels' own
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Function>> functions;  // those asked for so far

  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
};

struct Kernel {
  CUkernel handle = nullptr;
  std::weak_ptr<Library> library;
  u64 index = 0;
  std::string name;
  std::array<std::shared_ptr<FunctionSettings>, kMaxDevices> settings;  // by device
};

struct Library {
  CUlibrary handle = nullptr;
  std::string ptx;
  std::mutex mutex;
  std::shared_ptr<Program> program;  // read to describe the kernels; becomes the first context's module
  bool program_taken = false;
  std::vector<std::shared_ptr<Kernel>> kernels;
  std::map<u64, std::shared_ptr<Module>> modules;  // by context id
};

Registry<Module, CUmodule>& modules();
Registry<Library, CUlibrary>& libraries();
Registry<Function, CUfunction>& functions();
Registry<Kernel, CUkernel>& kernels();

// Where a load reports what went wrong, besides stderr: the JIT options' buffers.
struct JitOptions {
  u32 count = 0;
  const CUjit_option* options = nullptr;
  void** values = nullptr;
};

// The PTX in an image, checked for version and target. Error NO_BINARY_FOR_GPU, INVALID_IMAGE, INVALID_PTX or
// UNSUPPORTED_PTX_VERSION, with the reason on stderr and in the error log of the options.
std::string ptx_of(const void* image, const JitOptions& options);
std::shared_ptr<Program> program_of(const std::string& ptx, const JitOptions& options);
// A module in a context: gives the program's variables addresses and initial values.
std::shared_ptr<Module> make_module(const std::shared_ptr<Context>& context,
                                    std::shared_ptr<Program> program);
// The function of that name, made at the first request. Error NOT_FOUND.
std::shared_ptr<Function> function_of(const std::shared_ptr<Module>& module, const std::string& name);
// Removes a module, its functions and its memory. Its context must have no work in flight.
void remove_module(const std::shared_ptr<Module>& module);
// Removes all modules of a context.
void unload_modules(Context& context);

// A launchable handle: a CUfunction, or a CUkernel taken in the current context. Error INVALID_HANDLE.
std::shared_ptr<Function> resolve_function(CUfunction handle);
std::shared_ptr<Function> function_of(const std::shared_ptr<Kernel>& kernel,
                                      const std::shared_ptr<Context>& context);
// The module of a library in a context, made at the first request.
std::shared_ptr<Module> module_of(const std::shared_ptr<Library>& library,
                                  const std::shared_ptr<Context>& context);
// A variable of a module. Error NOT_FOUND.
CUresult find_global(const std::shared_ptr<Module>& module, CUdeviceptr* address, size_t* bytes,
                     const char* name);
// Forgets a context in all libraries.
void drop_library_modules(const Context& context);

}  // namespace gpupool::softgpu
