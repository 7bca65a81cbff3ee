// Memsets. All are asynchronous for device memory, also the forms without a stream (CUDA API synchronization
// behaviour); pinned memory is written by the GPU as well, and the forms without a stream then wait.
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/manual/copy_sender.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

using Op = wire::Function;

struct Fill {
  Op function;
  u32 element_bytes;
  wire::Memset message;
};

// Over a stream transport the worker has no more than a copy of this process's memory: the program's own is
// set here, in the stream's order, which means after all that is on it.
CUresult fill_on_host(const Fill& what, Stream& stream) {
  if (const CUresult result = refuse_capturing(stream); result != CUDA_SUCCESS) return result;
  if (const CUresult result = wait_for_stream(stream); result != CUDA_SUCCESS) return result;
  const wire::Memset& memset = what.message;
  for (u64 row = 0; row < memset.height; ++row) {
    auto* const start = reinterpret_cast<u8*>(memset.device + row * memset.pitch);
    for (u64 i = 0; i < memset.width; ++i)
      std::memcpy(start + i * what.element_bytes, &memset.value, what.element_bytes);  // little-endian
  }
  return CUDA_SUCCESS;
}

CUresult fill(const Fill& what, CUstream handle, CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (error = check_legacy(*stream); error != CUDA_SUCCESS) return error;
  const wire::Memset& memset = what.message;
  if (memset.width == 0 || memset.height == 0) return CUDA_SUCCESS;
  if (memset.device % what.element_bytes != 0) return CUDA_ERROR_INVALID_VALUE;
  const u64 row = memset.width * what.element_bytes;
  if (row / what.element_bytes != memset.width) return CUDA_ERROR_INVALID_VALUE;
  u64 bytes = row;
  if (memset.height > 1) {
    if (memset.pitch < row || memset.pitch % what.element_bytes != 0) return CUDA_ERROR_INVALID_VALUE;
    if (__builtin_mul_overflow(memset.pitch, memset.height - 1, &bytes) ||
        __builtin_add_overflow(bytes, row, &bytes))
      return CUDA_ERROR_INVALID_VALUE;
  }
  if (error = check_device_range(memset.device, bytes); error != CUDA_SUCCESS) return error;
  const bool pinned = is_pinned(memset.device);
  const bool wait = call == CopyCall::synchronous && (pinned || address_space().synchronizes(memset.device));
  if (pinned && !Session::current()->shared_memory()) return fill_on_host(what, *stream);
  CopySender sender(*Session::current(), *stream);
  const u64 value = sender.send(what.function, memset, static_cast<u16>(wait ? wire::kMark : 0));
  if (wait && value != 0) sender.wait(value);
  return sender.error();
}

}  // namespace

namespace api {

CUresult cuMemsetD8_v2(CUdeviceptr device, unsigned char value, size_t count) {
  return fill({Op::cuMemsetD8Async, 1, {device, 0, count, 1, value}}, nullptr, CopyCall::synchronous);
}
CUresult cuMemsetD16_v2(CUdeviceptr device, unsigned short value, size_t count) {
  return fill({Op::cuMemsetD16Async, 2, {device, 0, count, 1, value}}, nullptr, CopyCall::synchronous);
}
CUresult cuMemsetD32_v2(CUdeviceptr device, unsigned int value, size_t count) {
  return fill({Op::cuMemsetD32Async, 4, {device, 0, count, 1, value}}, nullptr, CopyCall::synchronous);
}
CUresult cuMemsetD8Async(CUdeviceptr device, unsigned char value, size_t count, CUstream stream) {
  return fill({Op::cuMemsetD8Async, 1, {device, 0, count, 1, value}}, stream, CopyCall::asynchronous);
}
CUresult cuMemsetD16Async(CUdeviceptr device, unsigned short value, size_t count, CUstream stream) {
  return fill({Op::cuMemsetD16Async, 2, {device, 0, count, 1, value}}, stream, CopyCall::asynchronous);
}
CUresult cuMemsetD32Async(CUdeviceptr device, unsigned int value, size_t count, CUstream stream) {
  return fill({Op::cuMemsetD32Async, 4, {device, 0, count, 1, value}}, stream, CopyCall::asynchronous);
}
CUresult cuMemsetD2D8_v2(CUdeviceptr device, size_t pitch, unsigned char value, size_t width, size_t height) {
  return fill({Op::cuMemsetD2D8Async, 1, {device, pitch, width, height, value}}, nullptr,
              CopyCall::synchronous);
}
CUresult cuMemsetD2D16_v2(CUdeviceptr device, size_t pitch, unsigned short value, size_t width,
                          size_t height) {
  return fill({Op::cuMemsetD2D16Async, 2, {device, pitch, width, height, value}}, nullptr,
              CopyCall::synchronous);
}
CUresult cuMemsetD2D32_v2(CUdeviceptr device, size_t pitch, unsigned int value, size_t width, size_t height) {
  return fill({Op::cuMemsetD2D32Async, 4, {device, pitch, width, height, value}}, nullptr,
              CopyCall::synchronous);
}
CUresult cuMemsetD2D8Async(CUdeviceptr device, size_t pitch, unsigned char value, size_t width, size_t height,
                           CUstream stream) {
  return fill({Op::cuMemsetD2D8Async, 1, {device, pitch, width, height, value}}, stream,
              CopyCall::asynchronous);
}
CUresult cuMemsetD2D16Async(CUdeviceptr device, size_t pitch, unsigned short value, size_t width,
                            size_t height, CUstream stream) {
  return fill({Op::cuMemsetD2D16Async, 2, {device, pitch, width, height, value}}, stream,
              CopyCall::asynchronous);
}
CUresult cuMemsetD2D32Async(CUdeviceptr device, size_t pitch, unsigned int value, size_t width, size_t height,
                            CUstream stream) {
  return fill({Op::cuMemsetD2D32Async, 4, {device, pitch, width, height, value}}, stream,
              CopyCall::asynchronous);
}

}  // namespace api
}  // namespace gpupool::guest
