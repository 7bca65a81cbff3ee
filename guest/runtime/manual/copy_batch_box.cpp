// Batches of box copies: one after the other on the stream, which is one of the orders that a batch may have.
#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

u64 format_bytes(CUarray_format format) {
  switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
      return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
      return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return 4;
    default:
      return 0;
  }
}

// Bytes of an operand's elements: an array's, or 0 for a pointer, which takes the other side's.
CUresult element_bytes(const CUmemcpy3DOperand& operand, u64& bytes) {
  bytes = 0;
  if (operand.type == CU_MEMCPY_OPERAND_TYPE_POINTER) return CUDA_SUCCESS;
  if (operand.type != CU_MEMCPY_OPERAND_TYPE_ARRAY) return CUDA_ERROR_INVALID_VALUE;
  CUDA_ARRAY3D_DESCRIPTOR facts{};
  if (const CUresult result = api::cuArray3DGetDescriptor_v2(&facts, operand.op.array.array);
      result != CUDA_SUCCESS)
    return result;
  bytes = format_bytes(facts.Format) * facts.NumChannels;
  return bytes == 0 ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;  // block-compressed and planar formats
}

struct Side {
  CUmemorytype type{};
  CUdeviceptr device = 0;
  CUarray array = nullptr;
  u64 x_bytes = 0, y = 0, z = 0;
  u64 pitch = 0, height = 0;
};

bool describe(const CUmemcpy3DOperand& operand, const CUextent3D& extent, u64 unit, Side& side) {
  if (operand.type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
    side.type = CU_MEMORYTYPE_ARRAY;
    side.array = operand.op.array.array;
    side.x_bytes = operand.op.array.offset.x * unit;
    side.y = operand.op.array.offset.y;
    side.z = operand.op.array.offset.z;
    return true;
  }
  const auto& pointer = operand.op.ptr;
  // cuda.h: zero means packed as tightly as the copy itself is.
  if ((pointer.rowLength != 0 && pointer.rowLength < extent.width) ||
      (pointer.layerHeight != 0 && pointer.layerHeight < extent.height))
    return false;
  side.type = CU_MEMORYTYPE_UNIFIED;
  side.device = pointer.ptr;
  side.height = pointer.layerHeight != 0 ? pointer.layerHeight : extent.height;
  return pointer.ptr != 0 &&
         !__builtin_mul_overflow(pointer.rowLength != 0 ? pointer.rowLength : extent.width, unit,
                                 &side.pitch);
}

CUresult describe(const CUDA_MEMCPY3D_BATCH_OP& operation, CUDA_MEMCPY3D& copy) {
  u64 from = 0;
  u64 to = 0;
  if (const CUresult result = element_bytes(operation.src, from); result != CUDA_SUCCESS) return result;
  if (const CUresult result = element_bytes(operation.dst, to); result != CUDA_SUCCESS) return result;
  if (from != 0 && to != 0 && from != to) return CUDA_ERROR_INVALID_VALUE;
  const u64 unit = from != 0 ? from : to != 0 ? to : 1;
  const CUextent3D& extent = operation.extent;
  Side source;
  Side destination;
  u64 width_bytes = 0;
  if (extent.width == 0 || extent.height == 0 || extent.depth == 0 ||
      __builtin_mul_overflow(u64{extent.width}, unit, &width_bytes) ||
      !describe(operation.src, extent, unit, source) || !describe(operation.dst, extent, unit, destination))
    return CUDA_ERROR_INVALID_VALUE;
  copy = CUDA_MEMCPY3D{};
  copy.srcMemoryType = source.type;
  copy.srcDevice = source.device;
  copy.srcArray = source.array;
  copy.srcXInBytes = source.x_bytes;
  copy.srcY = source.y;
  copy.srcZ = source.z;
  copy.srcPitch = source.pitch;
  copy.srcHeight = source.height;
  copy.dstMemoryType = destination.type;
  copy.dstDevice = destination.device;
  copy.dstArray = destination.array;
  copy.dstXInBytes = destination.x_bytes;
  copy.dstY = destination.y;
  copy.dstZ = destination.z;
  copy.dstPitch = destination.pitch;
  copy.dstHeight = destination.height;
  copy.WidthInBytes = width_bytes;
  copy.Height = extent.height;
  copy.Depth = extent.depth;
  return CUDA_SUCCESS;
}

bool known_order(CUmemcpySrcAccessOrder order) {
  return order >= CU_MEMCPY_SRC_ACCESS_ORDER_STREAM && order <= CU_MEMCPY_SRC_ACCESS_ORDER_ANY;
}

CUresult copy_boxes(const CUDA_MEMCPY3D_BATCH_OP* operations, size_t count, unsigned long long flags,
                    CUstream handle, size_t& failed) {
  failed = SIZE_MAX;  // no copy of its own is to blame
  if (operations == nullptr || count == 0 || flags != 0 || handle == nullptr || handle == CU_STREAM_LEGACY)
    return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = copy_stream(handle, CopyCall::asynchronous, error);
  if (stream == nullptr) return error;
  bool wait = false;
  for (size_t i = 0; i < count; ++i) {
    CUDA_MEMCPY3D copy{};
    CUresult result =
        known_order(operations[i].srcAccessOrder) ? describe(operations[i], copy) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) result = api::cuMemcpy3DAsync_v2(&copy, handle);
    if (result != CUDA_SUCCESS) {
      failed = i;
      return result;
    }
    // A source that may change after the call is read during it; only pinned ones are read later.
    wait |= operations[i].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL &&
            copy.srcMemoryType == CU_MEMORYTYPE_UNIFIED && is_pinned(copy.srcDevice);
  }
  return wait && !stream->capturing ? wait_for_stream(*stream) : CUDA_SUCCESS;
}

}  // namespace

namespace api {

CUresult cuMemcpy3DBatchAsync(size_t count, CUDA_MEMCPY3D_BATCH_OP* operations, size_t* failed,
                              unsigned long long flags, CUstream stream) {
  size_t index = 0;
  const CUresult result = copy_boxes(operations, count, flags, stream, index);
  if (result != CUDA_SUCCESS && failed != nullptr) *failed = index;
  return result;
}

CUresult cuMemcpy3DBatchAsync_v2(size_t count, CUDA_MEMCPY3D_BATCH_OP* operations, unsigned long long flags,
                                 CUstream stream) {
  size_t index = 0;
  return copy_boxes(operations, count, flags, stream, index);
}

}  // namespace api
}  // namespace gpupool::guest
