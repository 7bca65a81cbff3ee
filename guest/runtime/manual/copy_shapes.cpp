// Entry points of 2D, 3D and array copies: they turn the driver's descriptions into boxes.
#include "guest/runtime/manual/copy_box.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

// False when the description names no kind of memory.
bool tell(BoxSide& side, CUmemorytype type, const void* host, CUdeviceptr device, CUarray array) {
  switch (type) {
    case CU_MEMORYTYPE_HOST:
      side.kind = BoxSide::Kind::host;
      side.address = reinterpret_cast<u64>(host);
      return true;
    case CU_MEMORYTYPE_DEVICE:
    case CU_MEMORYTYPE_UNIFIED:
      // Under unified addressing a device address may be pinned host memory; a unified one may be anything.
      side.address = device;
      side.kind = side_of(device) == Side::device ||
                          (type == CU_MEMORYTYPE_DEVICE && side_of(device) == Side::pageable)
                      ? BoxSide::Kind::device
                      : BoxSide::Kind::host;
      return true;
    case CU_MEMORYTYPE_ARRAY:
      side.kind = BoxSide::Kind::array;
      side.address = reinterpret_cast<u64>(array);
      return true;
  }
  return false;
}

// The fields that the 3D and the peer description share.
template <typename Description>
bool box_of(const Description& copy, Box& box) {
  box.source.x_bytes = copy.srcXInBytes;
  box.source.y = copy.srcY;
  box.source.z = copy.srcZ;
  box.source.lod = static_cast<u32>(copy.srcLOD);
  box.source.pitch = copy.srcPitch;
  box.source.height = copy.srcHeight;
  box.destination.x_bytes = copy.dstXInBytes;
  box.destination.y = copy.dstY;
  box.destination.z = copy.dstZ;
  box.destination.lod = static_cast<u32>(copy.dstLOD);
  box.destination.pitch = copy.dstPitch;
  box.destination.height = copy.dstHeight;
  box.width_bytes = copy.WidthInBytes;
  box.height = copy.Height;
  box.depth = copy.Depth;
  return tell(box.source, copy.srcMemoryType, copy.srcHost, copy.srcDevice, copy.srcArray) &&
         tell(box.destination, copy.dstMemoryType, copy.dstHost, copy.dstDevice, copy.dstArray);
}

bool box_of(const CUDA_MEMCPY2D& copy, Box& box) {
  box.source.x_bytes = copy.srcXInBytes;
  box.source.y = copy.srcY;
  box.destination.x_bytes = copy.dstXInBytes;
  box.destination.y = copy.dstY;
  box.source.pitch = copy.srcPitch;
  box.destination.pitch = copy.dstPitch;
  box.width_bytes = copy.WidthInBytes;
  box.height = copy.Height;
  box.depth = 1;
  return tell(box.source, copy.srcMemoryType, copy.srcHost, copy.srcDevice, copy.srcArray) &&
         tell(box.destination, copy.dstMemoryType, copy.dstHost, copy.dstDevice, copy.dstArray);
}

template <typename Description>
CUresult copy_described(const Description* copy, CUstream handle, CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = copy_stream(handle, call, error);
  if (stream == nullptr) return error;
  Box box;
  if (copy == nullptr || !box_of(*copy, box)) return CUDA_ERROR_INVALID_VALUE;
  return copy_box(box, *stream, call);
}

CUresult copy_peer(const CUDA_MEMCPY3D_PEER* copy, CUstream handle, CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = copy_stream(handle, call, error);
  if (stream == nullptr) return error;
  Box box;
  if (copy == nullptr || !box_of(*copy, box)) return CUDA_ERROR_INVALID_VALUE;
  Context* from = find(copy->srcContext);
  Context* to = find(copy->dstContext);
  if (from == nullptr || to == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (from != to) {
    box.source_context = from;
    box.destination_context = to;
  }
  return copy_box(box, *stream, call);
}

// One-dimensional copies from or to arrays are boxes of one row.
BoxSide host_side(const void* address) {
  BoxSide side;
  side.kind = BoxSide::Kind::host;
  side.address = reinterpret_cast<u64>(address);
  return side;
}
BoxSide device_side(CUdeviceptr address) {
  BoxSide side;
  side.address = address;
  return side;
}
BoxSide array_side(CUarray array, size_t offset) {
  BoxSide side;
  side.kind = BoxSide::Kind::array;
  side.address = reinterpret_cast<u64>(array);
  side.x_bytes = offset;
  return side;
}

CUresult copy_row(const BoxSide& source, const BoxSide& destination, size_t bytes, CUstream handle,
                  CopyCall call) {
  CUresult error = CUDA_SUCCESS;
  Stream* stream = copy_stream(handle, call, error);
  if (stream == nullptr) return error;
  Box box{source, destination, bytes, 1, 1, nullptr, nullptr};
  box.source.pitch = box.destination.pitch = bytes;
  box.source.height = box.destination.height = 1;
  return copy_box(box, *stream, call);
}

}  // namespace

namespace api {

constexpr CopyCall kWaits = CopyCall::synchronous;
constexpr CopyCall kReturns = CopyCall::asynchronous;

CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* copy) {
  return copy_described(copy, nullptr, kWaits);
}
CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* copy) {
  return copy_described(copy, nullptr, kWaits);
}
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* copy, CUstream stream) {
  return copy_described(copy, stream, kReturns);
}
CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D* copy) {
  return copy_described(copy, nullptr, kWaits);
}
CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* copy, CUstream stream) {
  return copy_described(copy, stream, kReturns);
}
CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* copy) {
  return copy_peer(copy, nullptr, kWaits);
}
CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* copy, CUstream stream) {
  return copy_peer(copy, stream, kReturns);
}

CUresult cuMemcpyHtoA_v2(CUarray array, size_t offset, const void* host, size_t bytes) {
  return copy_row(host_side(host), array_side(array, offset), bytes, nullptr, kWaits);
}
CUresult cuMemcpyHtoAAsync_v2(CUarray array, size_t offset, const void* host, size_t bytes, CUstream stream) {
  return copy_row(host_side(host), array_side(array, offset), bytes, stream, kReturns);
}
CUresult cuMemcpyAtoH_v2(void* host, CUarray array, size_t offset, size_t bytes) {
  return copy_row(array_side(array, offset), host_side(host), bytes, nullptr, kWaits);
}
CUresult cuMemcpyAtoHAsync_v2(void* host, CUarray array, size_t offset, size_t bytes, CUstream stream) {
  return copy_row(array_side(array, offset), host_side(host), bytes, stream, kReturns);
}
CUresult cuMemcpyAtoD_v2(CUdeviceptr device, CUarray array, size_t offset, size_t bytes) {
  return copy_row(array_side(array, offset), device_side(device), bytes, nullptr, kWaits);
}
CUresult cuMemcpyDtoA_v2(CUarray array, size_t offset, CUdeviceptr device, size_t bytes) {
  return copy_row(device_side(device), array_side(array, offset), bytes, nullptr, kWaits);
}
CUresult cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset, size_t bytes) {
  return copy_row(array_side(from, from_offset), array_side(to, to_offset), bytes, nullptr, kWaits);
}

}  // namespace api
}  // namespace gpupool::guest
