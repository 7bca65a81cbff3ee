// Arrays, cleared before the client learns of them: nothing can memset an array, so zeroes are copied into
// it.
#include <algorithm>

#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "hostd/worker/memory_account.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u64 kScratchBytes = 16ull << 20;
// Memory comes to such arrays later, and not through us.
constexpr u32 kWithoutMemory = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;

bool known_format(const CUarray_format& format) {
  return wire::number_in(format) <= CU_AD_FORMAT_MAX;
}

// Bytes of one element; 0 where elements are not laid out one after the other (compressed blocks, planes).
u64 element_bytes(const CUDA_ARRAY3D_DESCRIPTOR& array) {
  switch (array.Format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
    case CU_AD_FORMAT_UNORM_INT8X1:
    case CU_AD_FORMAT_UNORM_INT8X2:
    case CU_AD_FORMAT_UNORM_INT8X4:
    case CU_AD_FORMAT_SNORM_INT8X1:
    case CU_AD_FORMAT_SNORM_INT8X2:
    case CU_AD_FORMAT_SNORM_INT8X4:
      return array.NumChannels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
    case CU_AD_FORMAT_UNORM_INT16X1:
    case CU_AD_FORMAT_UNORM_INT16X2:
    case CU_AD_FORMAT_UNORM_INT16X4:
    case CU_AD_FORMAT_SNORM_INT16X1:
    case CU_AD_FORMAT_SNORM_INT16X2:
    case CU_AD_FORMAT_SNORM_INT16X4:
      return u64{array.NumChannels} * 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return u64{array.NumChannels} * 4;
    default:
      return 0;
  }
}

// Device memory with zeroes in it, for as long as this lives. It is the worker's, not the program's: an array
// that just fits a quota must not fail for it.
class Zeroes {
 public:
  Zeroes(Worker& worker, u64 bytes) : worker_(worker) {
    error_ = uncounted_driver(worker).cuMemAlloc_v2(&address_, bytes);
    if (error_ == CUDA_SUCCESS) error_ = clear_memory(worker, address_, bytes);
  }
  ~Zeroes() {
    if (address_ != 0) uncounted_driver(worker_).cuMemFree_v2(address_);
  }
  Zeroes(const Zeroes&) = delete;
  Zeroes& operator=(const Zeroes&) = delete;
  [[nodiscard]] CUresult error() const { return error_; }
  [[nodiscard]] CUdeviceptr address() const { return address_; }

 private:
  Worker& worker_;
  CUdeviceptr address_ = 0;
  CUresult error_ = CUDA_SUCCESS;
};

CUresult clear_array(Worker& worker, CUarray array) {
  CUDA_ARRAY3D_DESCRIPTOR shape{};
  if (const CUresult result = worker.driver.cuArray3DGetDescriptor_v2(&shape, array); result != CUDA_SUCCESS)
    return result;
  const u64 row = shape.Width * element_bytes(shape);
  if (row == 0) {
    note_cap("endpoint.scrub: arrays of this format cannot be cleared");
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  const u64 rows = std::max<u64>(shape.Height, 1);
  const u64 step = std::clamp<u64>(kScratchBytes / row, 1, rows);
  const Zeroes zeroes(worker, row * step);
  if (zeroes.error() != CUDA_SUCCESS) return zeroes.error();
  CUstream stream = nullptr;
  CUresult result = clearing_stream(worker, stream);
  for (u64 plane = 0; plane < std::max<u64>(shape.Depth, 1) && result == CUDA_SUCCESS; ++plane)
    for (u64 at = 0; at < rows && result == CUDA_SUCCESS; at += step) {
      CUDA_MEMCPY3D copy{};
      copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
      copy.srcDevice = zeroes.address();
      copy.srcPitch = row;
      copy.srcHeight = step;
      copy.dstMemoryType = CU_MEMORYTYPE_ARRAY;
      copy.dstArray = array;
      copy.dstY = at;
      copy.dstZ = plane;
      copy.WidthInBytes = row;
      copy.Height = std::min(step, rows - at);
      copy.Depth = 1;
      result = worker.driver.cuMemcpy3DAsync_v2(&copy, stream);
    }
  return result == CUDA_SUCCESS ? worker.driver.cuStreamSynchronize(stream) : result;
}

CUresult keep_array(Worker& worker, wire::Handle handle, CUarray array, u32 flags) {
  if (worker.caps.scrub && (flags & kWithoutMemory) == 0)
    if (const CUresult result = clear_array(worker, array); result != CUDA_SUCCESS) {
      worker.driver.cuArrayDestroy(array);
      return result;
    }
  worker.arrays.put(handle, array);
  return CUDA_SUCCESS;
}

CUresult clear_levels(Worker& worker, CUmipmappedArray array, u32 levels) {
  for (u32 level = 0; level < levels; ++level) {
    CUarray one = nullptr;
    const CUresult found = worker.driver.cuMipmappedArrayGetLevel(&one, array, level);
    // The driver makes as many levels as the size has, which may be fewer than asked for (cuda.h).
    if (found == CUDA_ERROR_INVALID_VALUE && level > 0) return CUDA_SUCCESS;
    if (found != CUDA_SUCCESS) return found;
    if (const CUresult result = clear_array(worker, one); result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

}  // namespace

CUresult handle_cuArrayCreate_v2(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto shape = request.in.get<CUDA_ARRAY_DESCRIPTOR>();
  request.in.finish();
  if (!known_format(shape.Format)) return CUDA_ERROR_INVALID_VALUE;
  CUarray array = nullptr;
  const CUresult result = worker.driver.cuArrayCreate_v2(&array, &shape);
  return result != CUDA_SUCCESS ? result : keep_array(worker, handle, array, 0);
}

CUresult handle_cuArray3DCreate_v2(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto shape = request.in.get<CUDA_ARRAY3D_DESCRIPTOR>();
  request.in.finish();
  if (!known_format(shape.Format)) return CUDA_ERROR_INVALID_VALUE;
  CUarray array = nullptr;
  const CUresult result = worker.driver.cuArray3DCreate_v2(&array, &shape);
  return result != CUDA_SUCCESS ? result : keep_array(worker, handle, array, shape.Flags);
}

CUresult handle_cuMipmappedArrayCreate(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto shape = request.in.get<CUDA_ARRAY3D_DESCRIPTOR>();
  const auto levels = request.in.get<u32>();
  request.in.finish();
  if (!known_format(shape.Format)) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuMipmappedArrayCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUmipmappedArray array = nullptr;
  CUresult result = worker.driver.cuMipmappedArrayCreate(&array, &shape, levels);
  if (result != CUDA_SUCCESS) return result;
  if (worker.caps.scrub && (shape.Flags & kWithoutMemory) == 0) result = clear_levels(worker, array, levels);
  if (result != CUDA_SUCCESS) {
    worker.driver.cuMipmappedArrayDestroy(array);
    return result;
  }
  worker.mipmapped_arrays.put(handle, array);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
