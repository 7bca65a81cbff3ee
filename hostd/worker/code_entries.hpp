// What the worker keeps for modules, libraries, functions and linker states.
//
// Invariant: a function's entry lives no longer than its module or library; drop_functions() takes the list
// an owner keeps. Functions carry the size of their parameter buffer, so that a client can never make the
// driver read beyond what it sent.
#pragma once

#include <cuda.h>

#include <memory>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

class Worker;

// A private copy of an image, zero-padded at its end. Some drivers read it for as long as its library is
// loaded.
class ImageCopy;

struct ModuleEntry {
  CUmodule module = nullptr;
  u32 context = 0;          // handle index of its context
  bool of_library = false;  // cuLibraryGetModule gave it out: never unloaded by itself
  u64 image_bytes = 0;      // 0 for a library's, which counts there
  std::vector<wire::Handle> functions;
  std::vector<wire::Handle> references;  // to textures and surfaces
};

struct LibraryEntry {
  CUlibrary library = nullptr;
  std::shared_ptr<ImageCopy> image;
  std::vector<wire::Handle> kernels;
  std::vector<wire::Handle> modules;  // what cuLibraryGetModule gave out
};

struct FunctionEntry {
  CUfunction function = nullptr;  // or a CUkernel, cast as the driver allows
  bool kernel = false;
  // A kernel's function in the context it was last used in: a launch through it costs the driver a third of
  // one through the kernel (measured on an H100: 1.7 against 5.2 us).
  CUfunction resolved = nullptr;
  u32 resolved_context = 0;  // handle index; 0 for none
  bool described = false;    // parameter_bytes is known
  u32 parameter_bytes = 0;
};

struct LinkEntry;

// Forgets the texture and surface references of a module that is about to go.
void drop_references(Worker& worker, const ModuleEntry& module);

// Forgets every module of a context, its functions and what kernels had there, without calling the driver: it
// destroys them with the context. For the handlers that destroy or reset a context.
void drop_modules(Worker& worker, u32 context_index);

}  // namespace gpupool::worker
