// Entry points of copies of one run of bytes. The work is in copy_linear.cpp.
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/manual/copy_sender.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

CUresult to_device(CUdeviceptr destination, const void* source, size_t bytes, CUstream stream,
                   CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* target = copy_stream(stream, call, error);
  return target == nullptr ? error : copy_to_device(destination, source, bytes, *target, call);
}

CUresult to_host(void* destination, CUdeviceptr source, size_t bytes, CUstream stream, CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* target = copy_stream(stream, call, error);
  return target == nullptr ? error : copy_to_host(destination, source, bytes, *target, call);
}

CUresult on_device(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream,
                   CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* target = copy_stream(stream, call, error);
  if (target == nullptr) return error;
  // Pinned memory is device memory too under unified addressing.
  if (is_pinned(destination) || is_pinned(source))
    return copy_unified(destination, source, bytes, *target, call);
  return copy_on_device(destination, source, bytes, *target, call);
}

CUresult unified(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream, CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* target = copy_stream(stream, call, error);
  return target == nullptr ? error : copy_unified(destination, source, bytes, *target, call);
}

CUresult peer(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
              CUcontext source_context, size_t bytes, CUstream stream, CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* target = copy_stream(stream, call, error);
  if (target == nullptr) return error;
  Context* to = find(destination_context);
  Context* from = find(source_context);
  if (to == nullptr || from == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  const bool on_host = side_of(destination) != Side::device || side_of(source) != Side::device;
  if (to == from || on_host) return copy_unified(destination, source, bytes, *target, call);
  if (bytes == 0) return CUDA_SUCCESS;
  for (const u64 address : {u64{destination}, u64{source}})
    if (const CUresult result = check_device_range(address, bytes); result != CUDA_SUCCESS) return result;
  if (call == CopyCall::synchronous)
    if (const CUresult result = wait_for_both(*to, *from); result != CUDA_SUCCESS) return result;
  CopySender sender(*Session::current(), *target);
  sender.send(wire::Function::cuMemcpyPeerAsync,
              wire::PeerCopy{destination, source, bytes, to->index, from->index}, 0);
  if (sender.failed() || call == CopyCall::asynchronous) return sender.error();
  return wait_for_stream(*target);
}

}  // namespace

namespace api {

CUresult cuMemcpyHtoD_v2(CUdeviceptr destination, const void* source, size_t bytes) {
  return to_device(destination, source, bytes, nullptr, CopyCall::synchronous);
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr destination, const void* source, size_t bytes, CUstream stream) {
  return to_device(destination, source, bytes, stream, CopyCall::asynchronous);
}
CUresult cuMemcpyDtoH_v2(void* destination, CUdeviceptr source, size_t bytes) {
  return to_host(destination, source, bytes, nullptr, CopyCall::synchronous);
}
CUresult cuMemcpyDtoHAsync_v2(void* destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  return to_host(destination, source, bytes, stream, CopyCall::asynchronous);
}
// Copies on the device do not wait, also without a stream argument (CUDA API synchronization behaviour).
CUresult cuMemcpyDtoD_v2(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
  return on_device(destination, source, bytes, nullptr, CopyCall::synchronous);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  return on_device(destination, source, bytes, stream, CopyCall::asynchronous);
}
CUresult cuMemcpy(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
  return unified(destination, source, bytes, nullptr, CopyCall::synchronous);
}
CUresult cuMemcpyAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  return unified(destination, source, bytes, stream, CopyCall::asynchronous);
}
CUresult cuMemcpyPeer(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                      CUcontext source_context, size_t bytes) {
  return peer(destination, destination_context, source, source_context, bytes, nullptr,
              CopyCall::synchronous);
}
CUresult cuMemcpyPeerAsync(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                           CUcontext source_context, size_t bytes, CUstream stream) {
  return peer(destination, destination_context, source, source_context, bytes, stream,
              CopyCall::asynchronous);
}

}  // namespace api
}  // namespace gpupool::guest
