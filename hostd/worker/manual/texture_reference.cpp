// Texture and surface references: parts of a module, so their handles go with it.
#include <algorithm>

#include "hostd/worker/worker.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kMaxNameBytes = 64u << 10;

// module, name -> handle of a reference in it.
template <typename Reference>
CUresult answer_reference(Worker& worker, Request& request, HandleTable<Reference>& table,
                          CUresult (*ask)(Reference*, CUmodule, const char*)) {
  ModuleEntry* module = worker.modules.find(request.in.get<wire::Handle>());
  const std::string name = request.in.get_string(kMaxNameBytes);
  request.in.finish();
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (ask == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  Reference reference = nullptr;
  if (const CUresult result = ask(&reference, module->module, name.c_str()); result != CUDA_SUCCESS)
    return result;
  const wire::Handle handle = table.find_or_add(reference);
  if (!handle) return CUDA_ERROR_OUT_OF_MEMORY;
  if (std::ranges::find(module->references, handle) == module->references.end())
    module->references.push_back(handle);
  request.out->put(handle);
  return CUDA_SUCCESS;
}

}  // namespace

void drop_references(Worker& worker, const ModuleEntry& module) {
  for (const wire::Handle handle : module.references) {
    worker.texrefs.take(handle);
    worker.surfrefs.take(handle);
  }
}

CUresult handle_cuModuleGetTexRef(Worker& worker, Request& request) {
  return answer_reference(worker, request, worker.texrefs, worker.driver.cuModuleGetTexRef);
}

CUresult handle_cuModuleGetSurfRef(Worker& worker, Request& request) {
  return answer_reference(worker, request, worker.surfrefs, worker.driver.cuModuleGetSurfRef);
}

// reference, float[4].
CUresult handle_cuTexRefSetBorderColor(Worker& worker, Request& request) {
  const CUtexref* reference = worker.texrefs.find(request.in.get<wire::Handle>());
  float color[4];
  for (float& each : color) each = request.in.get<float>();
  if (reference == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (worker.driver.cuTexRefSetBorderColor == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  return worker.driver.cuTexRefSetBorderColor(*reference, color);
}

// reference -> float[4].
CUresult handle_cuTexRefGetBorderColor(Worker& worker, Request& request) {
  const CUtexref* reference = worker.texrefs.find(request.in.get<wire::Handle>());
  if (reference == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (worker.driver.cuTexRefGetBorderColor == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  float color[4] = {};
  const CUresult result = worker.driver.cuTexRefGetBorderColor(color, *reference);
  for (const float each : color) request.out->put(each);
  return result;
}

}  // namespace gpupool::worker
