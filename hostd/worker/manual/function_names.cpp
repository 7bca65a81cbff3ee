// The names of a module's or library's functions, for clients that look up several of them. Names only: the
// driver loads no function for this.
#include "wire/cpp/types.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

constexpr u64 kMaxNamesBytes = 1 << 20;

// Appends the name of each item until there are more than `room` bytes.
template <typename Item, typename NameOf>
CUresult append_names(std::string& text, const std::vector<Item>& items, u64 room, NameOf name_of) {
  for (const Item& item : items) {
    const char* name = nullptr;
    if (const CUresult result = name_of(&name, item); result != CUDA_SUCCESS) return result;
    text.append(name).push_back('\0');
    if (text.size() > room) return CUDA_ERROR_NOT_READY;
  }
  return CUDA_SUCCESS;
}

// Every name has two bytes or more: what is certain not to fit need not be listed.
bool too_many(u64 count, u64 room) {
  return count > room / 2;
}

CUresult names_of_module(Worker& worker, CUmodule module, u64 room, std::string& text) {
  unsigned int count = 0;
  CUresult result = worker.driver.cuModuleGetFunctionCount(&count, module);
  if (result != CUDA_SUCCESS) return result;
  if (too_many(count, room)) return CUDA_ERROR_NOT_READY;
  std::vector<CUfunction> functions(count);
  if (count != 0) result = worker.driver.cuModuleEnumerateFunctions(functions.data(), count, module);
  if (result != CUDA_SUCCESS) return result;
  return append_names(text, functions, room, [&worker](const char** name, CUfunction function) {
    return worker.driver.cuFuncGetName(name, function);
  });
}

CUresult names_of_library(Worker& worker, CUlibrary library, u64 room, std::string& text) {
  unsigned int count = 0;
  CUresult result = worker.driver.cuLibraryGetKernelCount(&count, library);
  if (result != CUDA_SUCCESS) return result;
  if (too_many(count, room)) return CUDA_ERROR_NOT_READY;
  std::vector<CUkernel> kernels(count);
  if (count != 0) result = worker.driver.cuLibraryEnumerateKernels(kernels.data(), count, library);
  if (result != CUDA_SUCCESS) return result;
  return append_names(text, kernels, room, [&worker](const char** name, CUkernel kernel) {
    return worker.driver.cuKernelGetName(name, kernel);
  });
}

}  // namespace

// wire::Handle module or library, u64 room -> i32 result (NOT_READY: they do not fit), char names[].
CUresult handle_function_names(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto room = request.in.get<u64>();
  request.in.finish();
  if (room > kMaxNamesBytes) throw wire::ProtocolError("more room for names than any client has");
  std::string text;
  CUresult result = CUDA_ERROR_INVALID_HANDLE;
  if (const ModuleEntry* module = worker.modules.find(handle); module != nullptr)
    result = names_of_module(worker, module->module, room, text);
  else if (const LibraryEntry* library = worker.libraries.find(handle); library != nullptr)
    result = names_of_library(worker, library->library, room, text);
  request.out->put(static_cast<i32>(result));
  if (result == CUDA_SUCCESS) request.out->put_array(text.data(), text.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
