#include "hostd/worker/image_scan.hpp"
#include "hostd/worker/manual/function.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/manual/module.hpp"
#include "hostd/worker/manual/module_image.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

// wire::Handle library, options, image -> i32 result, option results.
CUresult handle_cuLibraryLoadData(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  JitArguments jit(request);
  CUresult result = CUDA_SUCCESS;
  LibraryEntry entry;
  u32 asked = 0;
  const std::shared_ptr<ImageCopy> image = ImageCopy::take(worker, request, result, asked);
  entry.image = image;
  request.in.finish();
  if (entry.image != nullptr) {
    // The copy lives as long as the library, so the driver need not make another.
    CUlibraryOption option = CU_LIBRARY_BINARY_IS_PRESERVED;
    void* value = reinterpret_cast<void*>(u64{1});
    result = worker.driver.cuLibraryLoadData(&entry.library, entry.image->code(), jit.options(), jit.values(),
                                             jit.count(), &option, &value, 1);
  }
  if (result == CUDA_SUCCESS) {
    scan_image(entry.image);
    worker.libraries.put(handle, std::move(entry));
  }
  request.out->put(static_cast<i32>(result));
  jit.answer(worker, request);
  answer_kept(result == CUDA_SUCCESS ? image : nullptr, asked, request);
  return CUDA_SUCCESS;
}

// wire::Handle library.
CUresult handle_cuLibraryUnload(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  const std::optional<LibraryEntry> library = worker.libraries.take(handle);
  if (!library) return CUDA_ERROR_INVALID_HANDLE;
  drop_functions(worker, library->kernels);
  for (const wire::Handle module : library->modules)
    if (const std::optional<ModuleEntry> entry = worker.modules.take(module)) {
      drop_functions(worker, entry->functions);
      drop_references(worker, *entry);
    }
  return worker.driver.cuLibraryUnload(library->library);  // before the image copy goes
}

// wire::Handle library, wire::Handle kernel, i32 device (negative: do not describe), string name -> i32
// result, description.
CUresult handle_cuLibraryGetKernel(Worker& worker, Request& request) {
  const auto library_handle = request.in.get<wire::Handle>();
  const auto handle = request.in.get<wire::Handle>();
  const auto device = request.in.get<i32>();
  const std::string name = request.in.get_string(kMaxNameBytes);
  request.in.finish();
  if (device >= 0 && static_cast<u64>(device) >= worker.devices.size())
    throw wire::ProtocolError("device ordinal out of range");
  LibraryEntry* library = worker.libraries.find(library_handle);
  CUkernel kernel = nullptr;
  const CUresult result = library == nullptr
                              ? CUDA_ERROR_INVALID_HANDLE
                              : worker.driver.cuLibraryGetKernel(&kernel, library->library, name.c_str());
  request.out->put(static_cast<i32>(result));
  if (result != CUDA_SUCCESS) return CUDA_SUCCESS;
  put_function(worker, handle, reinterpret_cast<CUfunction>(kernel), true);
  library->kernels.push_back(handle);
  if (device >= 0) write_description(worker, request, *worker.functions.find(handle), device);
  return CUDA_SUCCESS;
}

// wire::Handle library -> u32 count.
CUresult handle_cuLibraryGetKernelCount(Worker& worker, Request& request) {
  const LibraryEntry* library = worker.libraries.find(request.in.get<wire::Handle>());
  request.in.finish();
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  unsigned int count = 0;
  const CUresult result = worker.driver.cuLibraryGetKernelCount(&count, library->library);
  if (result == CUDA_SUCCESS) request.out->put<u32>(count);
  return result;
}

// wire::Handle library, u64 room -> u64 bytes, char names[].
CUresult handle_cuLibraryEnumerateKernels(Worker& worker, Request& request) {
  const LibraryEntry* library = worker.libraries.find(request.in.get<wire::Handle>());
  const auto room = request.in.get<u64>();
  request.in.finish();
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  unsigned int count = 0;
  CUresult result = worker.driver.cuLibraryGetKernelCount(&count, library->library);
  std::vector<CUkernel> kernels(count);
  if (result == CUDA_SUCCESS && count != 0)
    result = worker.driver.cuLibraryEnumerateKernels(kernels.data(), count, library->library);
  if (result != CUDA_SUCCESS) return result;
  return answer_names(request, kernels, room, [&worker](const char** name, CUkernel kernel) {
    return worker.driver.cuKernelGetName(name, kernel);
  });
}

// wire::Handle library, wire::Handle module -> i32 result. The module of the current context.
CUresult handle_cuLibraryGetModule(Worker& worker, Request& request) {
  LibraryEntry* library = worker.libraries.find(request.in.get<wire::Handle>());
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  ModuleEntry entry;
  const CUresult result = library == nullptr
                              ? CUDA_ERROR_INVALID_HANDLE
                              : worker.driver.cuLibraryGetModule(&entry.module, library->library);
  if (result == CUDA_SUCCESS) {
    entry.context = worker.owner_of(request.context_index);
    entry.of_library = true;
    worker.modules.put(handle, std::move(entry));
    library->modules.push_back(handle);
  }
  request.out->put(static_cast<i32>(result));
  return CUDA_SUCCESS;
}

// wire::Handle library, string name -> u64 address, u64 bytes, in the current context.
CUresult handle_cuLibraryGetGlobal(Worker& worker, Request& request) {
  const LibraryEntry* library = worker.libraries.find(request.in.get<wire::Handle>());
  const std::string name = request.in.get_string(kMaxNameBytes);
  request.in.finish();
  if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUdeviceptr address = 0;
  size_t bytes = 0;
  const CUresult result = worker.driver.cuLibraryGetGlobal(&address, &bytes, library->library, name.c_str());
  if (result != CUDA_SUCCESS) return result;
  if (is_managed(worker, address)) return CUDA_ERROR_NOT_SUPPORTED;
  request.out->put<u64>(address);
  request.out->put<u64>(bytes);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
