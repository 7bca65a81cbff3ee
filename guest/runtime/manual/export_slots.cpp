#include "guest/runtime/manual/export_slots.hpp"

#include <array>
#include <atomic>
#include <vector>

#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/context_storage.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"

namespace gpupool::guest::export_slots {
namespace {

// Null and -1 both mean the current context.
CUresult storage_of(CUcontext handle, std::shared_ptr<LocalStorage>& storage) {
  const bool named = handle != nullptr && handle != reinterpret_cast<CUcontext>(~u64{0});
  const Context* context = named ? find(handle) : guest::current_context();
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  storage = context->details->storage;
  return CUDA_SUCCESS;
}

template <size_t Bytes>
CUresult static_buffer(void** buffer, size_t* bytes) {
  static std::array<u8, Bytes> memory{};
  if (buffer == nullptr || bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *buffer = memory.data();
  *bytes = Bytes;
  return CUDA_SUCCESS;
}

// Slots are called without passing an exported entry point, which would check this.
CUresult ready() {
  const Session* session = Session::current();
  return session == nullptr ? CUDA_ERROR_NOT_INITIALIZED : session->failed();
}

}  // namespace

CUresult load_fatbin(CUmodule* module, const void* wrapper) {
  if (const CUresult result = ready(); result != CUDA_SUCCESS) return result;
  return api::cuModuleLoadFatBinary(module, wrapper);
}

CUresult load_fatbin_extended(CUmodule* module, const void* wrapper, void*, void*, u32) {
  if (const CUresult result = ready(); result != CUDA_SUCCESS) return result;
  return api::cuModuleLoadFatBinary(module, wrapper);
}

CUresult load_fatbin_from(const void* fatbin, CUmodule* module, void*, void*, u32) {
  if (const CUresult result = ready(); result != CUDA_SUCCESS) return result;
  return api::cuModuleLoadData(module, fatbin);
}

// Gives the context's address without making it active, as the driver does; the runtime retains it
// afterwards.
CUresult primary_context(CUcontext* context, CUdevice device) {
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = ready();
  if (error != CUDA_SUCCESS) return error;
  Context* primary = reserve_primary(device, error);
  if (primary == nullptr) return error;
  *context = handle_of(primary);
  return CUDA_SUCCESS;
}

CUresult ignore_size(size_t) {
  return CUDA_SUCCESS;
}

// They are the host's and load there when an image needs them.
CUresult load_compilers() {
  return CUDA_SUCCESS;
}

CUresult current_context(CUcontext* context) {
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *context = handle_of(guest::top_context());
  return CUDA_SUCCESS;
}

CUresult large_buffer(void** buffer, size_t* bytes) {
  return static_buffer<0x400>(buffer, bytes);
}

CUresult small_buffer(void** buffer, size_t* bytes) {
  return static_buffer<14>(buffer, bytes);
}

CUresult storage_put(CUcontext context, void* key, void* value, StorageDestructor destructor) {
  std::shared_ptr<LocalStorage> storage;
  if (const CUresult result = storage_of(context, storage); result != CUDA_SUCCESS) return result;
  return storage->put(key, value, destructor);
}

CUresult storage_delete(CUcontext context, void* key) {
  std::shared_ptr<LocalStorage> storage;
  if (const CUresult result = storage_of(context, storage); result != CUDA_SUCCESS) return result;
  return storage->erase(key);
}

CUresult storage_get(void** value, CUcontext context, void* key) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::shared_ptr<LocalStorage> storage;
  if (const CUresult result = storage_of(context, storage); result != CUDA_SUCCESS) return result;
  return storage->get(key, value);
}

CUresult query_hook(CUcontext, u32* flag, void**) {
  if (flag == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *flag = 0;
  return CUDA_SUCCESS;
}

CUresult refuse() {
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult succeed() {
  return CUDA_SUCCESS;
}

CUresult blas_query(CUcontext, u32* out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *out = 1;
  return CUDA_SUCCESS;
}

// cuBLAS keeps work space by stream and asks these two which stream it is on (cuBLAS 13, from its getrs and
// trsm): first (context, stream, &resolved, 1 if the stream is the per-thread one), then (context, resolved,
// &id). It only compares ids, so the resolved stream may be any value that names it.
CUresult blas_stream(CUcontext, CUstream stream, Stream** resolved, int) {
  if (resolved == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  *resolved = resolve_stream(stream, error);
  return error;
}

CUresult blas_stream_id(CUcontext, Stream* resolved, u64* id) {
  const Stream* stream = g_streams.find(resolved);
  if (stream == nullptr || id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *id = stream->id;
  return CUDA_SUCCESS;
}

// (context, module, callback(user, function), user): calls back with the module's functions. cuFFT's callback
// only stores the function in *user; the driver answers 1 (driver 580, cuFFT 12).
int fft_enumerate(CUcontext, CUmodule module, void (*callback)(void*, CUfunction), void* user) {
  unsigned int count = 0;
  if (api::cuModuleGetFunctionCount(&count, module) != CUDA_SUCCESS || count == 0) return 0;
  std::vector<CUfunction> functions(count);
  if (api::cuModuleEnumerateFunctions(functions.data(), count, module) != CUDA_SUCCESS) return 0;
  for (const CUfunction function : functions) callback(user, function);
  return 1;
}

CUresult create_context(CUcontext* context, unsigned int flags, CUdevice device) {
  if (const CUresult result = ready(); result != CUDA_SUCCESS) return result;
  return api::cuCtxCreate_v2(context, flags, device);
}

}  // namespace gpupool::guest::export_slots
