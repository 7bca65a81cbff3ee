// Modules and libraries as other parts of the runtime need them.
#pragma once

#include <cuda.h>

#include "guest/runtime/manual/look_up.hpp"
#include "guest/runtime/message.hpp"

namespace gpupool::guest {

// Ends the client's objects for every module of a context that is being destroyed: the driver unloads them
// with it. Functions and addresses of those modules are unknown afterwards.
void forget_modules(Context& context);

// Unloads every module of a context that lives on (cuDevicePrimaryCtxReset). Libraries stay loaded, as with
// the driver; only their modules in this context go.
void unload_modules(Context& context);

// Finds a function of a module, or a kernel of a library, by name: in the cache, or in the worker.
CUresult find_function(Module& module, const char* name, LookUp how, Function*& function);
CUresult find_kernel(Library& library, const char* name, LookUp how, Function*& kernel);

// A library's module in a context is going away; the library forgets it. For module.cpp.
void forget_library_module(const Module& module);

// A module object with a wire handle of its own, known to forget_modules(); null when too many are alive.
Module* make_module(Context& context, Library* library);
// Ends a module object, its functions and what address_space() knows of its variables. Sends nothing.
void destroy_module(Module* module);

// Names of the functions that one module or library has: sends `message` with `owner`.
CUresult function_names(wire::Function message, wire::Handle owner, std::vector<std::string>& names);

// Enters a module variable in address_space() and writes what the program asked for.
CUresult answer_global(const Global& global, CUdeviceptr* address, size_t* bytes);

// Asks for a variable of a module or library in the current context, and enters it in address_space().
CUresult ask_global(wire::Function message, wire::Handle owner, const char* name, Context& context,
                    Global& global);

}  // namespace gpupool::guest
