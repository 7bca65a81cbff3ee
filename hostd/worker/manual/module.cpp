#include "hostd/worker/manual/module.hpp"

#include "hostd/worker/image_scan.hpp"
#include "hostd/worker/manual/function.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/manual/module_image.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

void drop_modules(Worker& worker, u32 context_index) {
  std::vector<wire::Handle> gone;
  worker.modules.each([&](wire::Handle handle, const ModuleEntry& entry) {
    if (entry.context == context_index) gone.push_back(handle);
  });
  for (const wire::Handle handle : gone)
    if (const std::optional<ModuleEntry> entry = worker.modules.take(handle)) {
      drop_functions(worker, entry->functions);
      drop_references(worker, *entry);
    }
  worker.functions.each([context_index](wire::Handle, FunctionEntry& entry) {
    if (entry.resolved_context == context_index) entry.resolved_context = 0;
  });
}

// wire::Handle module, options, image -> i32 result, option results.
CUresult handle_cuModuleLoadDataEx(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  JitArguments jit(request);
  CUresult result = CUDA_SUCCESS;
  u32 asked = 0;
  const std::shared_ptr<ImageCopy> image = ImageCopy::take(worker, request, result, asked);
  request.in.finish();
  CUmodule module = nullptr;
  if (image != nullptr)
    result =
        worker.driver.cuModuleLoadDataEx(&module, image->code(), jit.count(), jit.options(), jit.values());
  if (result == CUDA_SUCCESS) {
    ModuleEntry entry;
    entry.module = module;
    entry.context = worker.owner_of(request.context_index);
    entry.image_bytes = image->bytes();
    worker.modules.put(handle, std::move(entry));
    scan_image(image);
  }
  request.out->put(static_cast<i32>(result));
  jit.answer(worker, request);
  answer_kept(result == CUDA_SUCCESS ? image : nullptr, asked, request);
  return CUDA_SUCCESS;
}

// wire::Handle module.
CUresult handle_cuModuleUnload(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  const ModuleEntry* entry = worker.modules.find(handle);
  if (entry == nullptr || entry->of_library) return CUDA_ERROR_INVALID_HANDLE;
  const CUmodule module = entry->module;
  drop_functions(worker, entry->functions);
  drop_references(worker, *entry);
  worker.modules.take(handle);
  return worker.driver.cuModuleUnload(module);
}

// wire::Handle module, wire::Handle function, i32 device (negative: do not describe), string name -> i32
// result, description.
CUresult handle_cuModuleGetFunction(Worker& worker, Request& request) {
  const auto module_handle = request.in.get<wire::Handle>();
  const auto handle = request.in.get<wire::Handle>();
  const auto device = request.in.get<i32>();
  const std::string name = request.in.get_string(kMaxNameBytes);
  request.in.finish();
  if (device >= 0 && static_cast<u64>(device) >= worker.devices.size())
    throw wire::ProtocolError("device ordinal out of range");
  ModuleEntry* module = worker.modules.find(module_handle);
  CUfunction function = nullptr;
  const CUresult result = module == nullptr
                              ? CUDA_ERROR_INVALID_HANDLE
                              : worker.driver.cuModuleGetFunction(&function, module->module, name.c_str());
  request.out->put(static_cast<i32>(result));
  if (result != CUDA_SUCCESS) return CUDA_SUCCESS;
  put_function(worker, handle, function, false);
  module->functions.push_back(handle);
  if (device >= 0) write_description(worker, request, *worker.functions.find(handle), device);
  return CUDA_SUCCESS;
}

// wire::Handle module -> u32 count.
CUresult handle_cuModuleGetFunctionCount(Worker& worker, Request& request) {
  const ModuleEntry* module = worker.modules.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  unsigned int count = 0;
  const CUresult result = worker.driver.cuModuleGetFunctionCount(&count, module->module);
  if (result == CUDA_SUCCESS) request.out->put<u32>(count);
  return result;
}

// wire::Handle module, u64 room -> u64 bytes, char names[].
CUresult handle_cuModuleEnumerateFunctions(Worker& worker, Request& request) {
  const ModuleEntry* module = worker.modules.find(request.in.get<wire::Handle>());
  const auto room = request.in.get<u64>();
  request.in.finish();
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  unsigned int count = 0;
  CUresult result = worker.driver.cuModuleGetFunctionCount(&count, module->module);
  std::vector<CUfunction> functions(count);
  if (result == CUDA_SUCCESS && count != 0)
    result = worker.driver.cuModuleEnumerateFunctions(functions.data(), count, module->module);
  if (result != CUDA_SUCCESS) return result;
  return answer_names(request, functions, room, [&worker](const char** name, CUfunction function) {
    return worker.driver.cuFuncGetName(name, function);
  });
}

// wire::Handle module, string name -> u64 address, u64 bytes.
CUresult handle_cuModuleGetGlobal_v2(Worker& worker, Request& request) {
  const ModuleEntry* module = worker.modules.find(request.in.get<wire::Handle>());
  const std::string name = request.in.get_string(kMaxNameBytes);
  request.in.finish();
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUdeviceptr address = 0;
  size_t bytes = 0;
  const CUresult result = worker.driver.cuModuleGetGlobal_v2(&address, &bytes, module->module, name.c_str());
  if (result != CUDA_SUCCESS) return result;
  if (is_managed(worker, address)) return CUDA_ERROR_NOT_SUPPORTED;
  request.out->put<u64>(address);
  request.out->put<u64>(bytes);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
