// Physical memory and pools passed to other processes as file descriptors. The program gets a descriptor of
// ours that holds a token; the driver's own stays on the host, where it could do more than share memory.
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/kept_memory.hpp"
#include "guest/runtime/manual/memory.hpp"
#include "guest/runtime/manual/share.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

CUresult check_type(CUmemAllocationHandleType type) {
  switch (type) {
    case CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR:
      return CUDA_SUCCESS;
    case CU_MEM_HANDLE_TYPE_FABRIC:  // needs the fabric's service on this machine
      return CUDA_ERROR_NOT_SUPPORTED;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

// Sends a call that answers with a token, and wraps the token up.
CUresult export_token(Call& call, wire::ShareKind kind, void* out) {
  collect_token_files(false);
  CUresult result = call.wait();
  if (result == CUDA_ERROR_OUT_OF_MEMORY) collect_token_files(true);  // for the next one
  if (result != CUDA_SUCCESS) return result;
  const int fd = make_token_file(kind, call.get<wire::ShareToken>());
  if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  std::memcpy(out, &fd, sizeof fd);
  return CUDA_SUCCESS;
}

// The descriptor travels as a pointer's value (cuda.h).
bool import_token(void* handle, wire::ShareKind kind, wire::ShareToken& token) {
  return read_token_file(static_cast<int>(reinterpret_cast<i64>(handle)), kind, token);
}

}  // namespace

namespace api {

CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_type(type); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemExportToShareableHandle);
  call.put(wire::Handle{handle});
  return export_token(call, wire::ShareKind::allocation, out);
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* out, void* handle,
                                        CUmemAllocationHandleType type) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_type(type); result != CUDA_SUCCESS) return result;
  wire::ShareToken token;
  if (!import_token(handle, wire::ShareKind::allocation, token)) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemImportFromShareableHandle);
  call.put(token);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *out = call.get<wire::Handle>().bits;
  return CUDA_SUCCESS;
}

CUresult cuMemPoolExportToShareableHandle(void* out, CUmemoryPool pool, CUmemAllocationHandleType type,
                                          unsigned long long flags) {
  if (out == nullptr || pool == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_type(type); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuMemPoolExportToShareableHandle);
  call.put(wire::Handle{reinterpret_cast<u64>(pool)});
  return export_token(call, wire::ShareKind::pool, out);
}

CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool* out, void* handle, CUmemAllocationHandleType type,
                                            unsigned long long flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_type(type); result != CUDA_SUCCESS) return result;
  wire::ShareToken token;
  if (!import_token(handle, wire::ShareKind::pool, token)) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemPoolImportFromShareableHandle);
  call.put(token);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *out = reinterpret_cast<CUmemoryPool>(call.get<wire::Handle>().bits);
  return CUDA_SUCCESS;
}

CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData* out, CUdeviceptr address) {
  const std::optional<Allocation> allocation = address_space().find(address);
  if (out == nullptr || !allocation || allocation->kind != MemoryKind::stream_ordered ||
      allocation->address != address)
    return CUDA_ERROR_INVALID_VALUE;
  never_keep(address);
  // The driver needs no current context (cuda-core exports in a thread that has none); the worker asks it for
  // the range too, which needs one.
  std::optional<ScopedContext> scope;
  if (top_context() == nullptr && allocation->context != nullptr) scope.emplace(allocation->context);
  Call call(wire::Function::cuMemPoolExportPointer);
  call.put<u64>(address);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  write_token(*out, wire::ShareKind::pool_pointer, call.get<wire::ShareToken>());
  return CUDA_SUCCESS;
}

CUresult cuMemPoolImportPointer(CUdeviceptr* out, CUmemoryPool pool, CUmemPoolPtrExportData* data) {
  Context* context = current_context();  // none is needed: the pool knows its device
  wire::ShareToken token;
  if (out == nullptr || pool == nullptr || data == nullptr ||
      !read_token(*data, wire::ShareKind::pool_pointer, token))
    return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuMemPoolImportPointer);
  call.put(wire::Handle{reinterpret_cast<u64>(pool)});
  call.put(token);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  Allocation allocation;
  allocation.kind = MemoryKind::stream_ordered;  // cuda.h: it is freed as the program's own, with a stream
  allocation.address = call.get<u64>();
  allocation.size = call.get<u64>();
  allocation.context = context;
  allocation.device = context == nullptr ? 0 : context->device;
  allocation.pool = reinterpret_cast<u64>(pool);
  if (!adopt_device_memory(allocation)) {
    Call give_back(wire::Function::cuMemFree_v2);
    give_back.put<u64>(allocation.address);
    static_cast<void>(give_back.send());
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  never_keep(allocation.address);
  *out = allocation.address;
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
