// The cuMemcpy family: every form is turned into the general copy of three dimensions.
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

CUDA_MEMCPY3D linear(CUmemorytype to_type, u64 to, CUmemorytype from_type, u64 from, u64 bytes) {
  CUDA_MEMCPY3D p{};
  p.dstMemoryType = to_type;
  p.dstHost = reinterpret_cast<void*>(to);
  p.dstDevice = to;
  p.srcMemoryType = from_type;
  p.srcHost = reinterpret_cast<const void*>(from);
  p.srcDevice = from;
  p.WidthInBytes = bytes;
  p.Height = p.Depth = 1;
  return p;
}

CUDA_MEMCPY3D plane(const CUDA_MEMCPY2D& q) {
  CUDA_MEMCPY3D p{};
  p.srcXInBytes = q.srcXInBytes;
  p.srcY = q.srcY;
  p.srcMemoryType = q.srcMemoryType;
  p.srcHost = q.srcHost;
  p.srcDevice = q.srcDevice;
  p.srcArray = q.srcArray;
  p.srcPitch = q.srcPitch;
  p.dstXInBytes = q.dstXInBytes;
  p.dstY = q.dstY;
  p.dstMemoryType = q.dstMemoryType;
  p.dstHost = q.dstHost;
  p.dstDevice = q.dstDevice;
  p.dstArray = q.dstArray;
  p.dstPitch = q.dstPitch;
  p.WidthInBytes = q.WidthInBytes;
  p.Height = q.Height;
  p.Depth = 1;
  return p;
}

CUDA_MEMCPY3D peer(const CUDA_MEMCPY3D_PEER& q) {
  CUDA_MEMCPY3D p{};
  p.srcXInBytes = q.srcXInBytes;
  p.srcY = q.srcY;
  p.srcZ = q.srcZ;
  p.srcLOD = q.srcLOD;
  p.srcMemoryType = q.srcMemoryType;
  p.srcHost = q.srcHost;
  p.srcDevice = q.srcDevice;
  p.srcArray = q.srcArray;
  p.srcPitch = q.srcPitch;
  p.srcHeight = q.srcHeight;
  p.dstXInBytes = q.dstXInBytes;
  p.dstY = q.dstY;
  p.dstZ = q.dstZ;
  p.dstLOD = q.dstLOD;
  p.dstMemoryType = q.dstMemoryType;
  p.dstHost = q.dstHost;
  p.dstDevice = q.dstDevice;
  p.dstArray = q.dstArray;
  p.dstPitch = q.dstPitch;
  p.dstHeight = q.dstHeight;
  p.WidthInBytes = q.WidthInBytes;
  p.Height = q.Height;
  p.Depth = q.Depth;
  return p;
}

// Waits for the copy.
CUresult copy_now(const CUDA_MEMCPY3D& p) {
  return call([&] {
    const auto stream = resolve_stream(nullptr);
    run_on_stream(stream, make_copy(p));
  });
}

// A pageable source is copied before the call returns, a pageable destination filled: as the driver does.
CUresult copy_later(const CUDA_MEMCPY3D& p, CUstream handle) {
  return call([&] {
    const auto stream = resolve_stream(handle);
    auto copy = make_copy(p);
    if (stream->capturing.load() || (!copy->to.pageable && !copy->from.pageable))
      put_on_stream(stream, std::move(copy));
    else if (copy->to.pageable || stream->idle())
      run_on_stream(stream, std::move(copy));
    else
      put_on_stream(stream, with_staged_source(*copy));
  });
}

constexpr CUmemorytype kHost = CU_MEMORYTYPE_HOST, kDevice = CU_MEMORYTYPE_DEVICE,
                       kAny = CU_MEMORYTYPE_UNIFIED;
u64 number(const void* pointer) {
  return reinterpret_cast<u64>(pointer);
}

// A copy between an array, seen as one row of bytes from `offset` on, and something else.
CUDA_MEMCPY3D array_side(CUDA_MEMCPY3D p, CUarray array, u64 offset, bool destination) {
  if (destination) {
    p.dstMemoryType = CU_MEMORYTYPE_ARRAY;
    p.dstArray = array;
    p.dstXInBytes = offset;
  } else {
    p.srcMemoryType = CU_MEMORYTYPE_ARRAY;
    p.srcArray = array;
    p.srcXInBytes = offset;
  }
  return p;
}

}  // namespace

GPUPOOL_CUDA CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return copy_now(linear(kAny, to, kAny, from, bytes));
}

GPUPOOL_CUDA CUresult cuMemcpyPeer(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes) {
  return copy_now(linear(kDevice, to, kDevice, from, bytes));
}

GPUPOOL_CUDA CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  return copy_now(linear(kDevice, to, kHost, number(from), bytes));
}

GPUPOOL_CUDA CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  return copy_now(linear(kHost, number(to), kDevice, from, bytes));
}

GPUPOOL_CUDA CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return copy_now(linear(kDevice, to, kDevice, from, bytes));
}

GPUPOOL_CUDA CUresult cuMemcpyDtoA_v2(CUarray to, size_t offset, CUdeviceptr from, size_t bytes) {
  return copy_now(array_side(linear(kAny, 0, kDevice, from, bytes), to, offset, true));
}

GPUPOOL_CUDA CUresult cuMemcpyAtoD_v2(CUdeviceptr to, CUarray from, size_t offset, size_t bytes) {
  return copy_now(array_side(linear(kDevice, to, kAny, 0, bytes), from, offset, false));
}

GPUPOOL_CUDA CUresult cuMemcpyHtoA_v2(CUarray to, size_t offset, const void* from, size_t bytes) {
  return copy_now(array_side(linear(kAny, 0, kHost, number(from), bytes), to, offset, true));
}

GPUPOOL_CUDA CUresult cuMemcpyAtoH_v2(void* to, CUarray from, size_t offset, size_t bytes) {
  return copy_now(array_side(linear(kHost, number(to), kAny, 0, bytes), from, offset, false));
}

GPUPOOL_CUDA CUresult cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset,
                                      size_t bytes) {
  return copy_now(
      array_side(array_side(linear(kAny, 0, kAny, 0, bytes), to, to_offset, true), from, from_offset, false));
}

GPUPOOL_CUDA CUresult cuMemcpyHtoAAsync_v2(CUarray to, size_t offset, const void* from, size_t bytes,
                                           CUstream stream) {
  return copy_later(array_side(linear(kAny, 0, kHost, number(from), bytes), to, offset, true), stream);
}

GPUPOOL_CUDA CUresult cuMemcpyAtoHAsync_v2(void* to, CUarray from, size_t offset, size_t bytes,
                                           CUstream stream) {
  return copy_later(array_side(linear(kHost, number(to), kAny, 0, bytes), from, offset, false), stream);
}

GPUPOOL_CUDA CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* p) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_now(plane(*p));
}

GPUPOOL_CUDA CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* p) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_now(plane(*p));
}

GPUPOOL_CUDA CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D* p) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_now(*p);
}

GPUPOOL_CUDA CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* p) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_now(peer(*p));
}

GPUPOOL_CUDA CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_later(linear(kAny, to, kAny, from, bytes), stream);
}

GPUPOOL_CUDA CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes,
                                        CUstream stream) {
  return copy_later(linear(kDevice, to, kDevice, from, bytes), stream);
}

GPUPOOL_CUDA CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return copy_later(linear(kDevice, to, kHost, number(from), bytes), stream);
}

GPUPOOL_CUDA CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_later(linear(kHost, number(to), kDevice, from, bytes), stream);
}

GPUPOOL_CUDA CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return copy_later(linear(kDevice, to, kDevice, from, bytes), stream);
}

GPUPOOL_CUDA CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* p, CUstream stream) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_later(plane(*p), stream);
}

GPUPOOL_CUDA CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* p, CUstream stream) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_later(*p, stream);
}

GPUPOOL_CUDA CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* p, CUstream stream) {
  return p == nullptr ? CUDA_ERROR_INVALID_VALUE : copy_later(peer(*p), stream);
}

}  // namespace gpupool::softgpu
