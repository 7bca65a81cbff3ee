#include "hostd/worker/array_bytes.hpp"

#include <algorithm>

#include "wire/cpp/reader.hpp"

namespace gpupool::worker {
namespace {

// Memory comes to such arrays later, as blocks that count by themselves.
constexpr u32 kWithoutMemory = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;

// A format as a block of elements and its bytes (cuda.h; the block-compressed ones as in the Khronos Data
// Format Specification, chapter "S3TC, RGTC and BPTC").
struct Block {
  u64 width = 1;
  u64 height = 1;
  u64 bytes = 0;
};

Block block_of(u32 format, u64 channels) {
  switch (format) {
    case CU_AD_FORMAT_BC1_UNORM:
    case CU_AD_FORMAT_BC1_UNORM_SRGB:
    case CU_AD_FORMAT_BC4_UNORM:
    case CU_AD_FORMAT_BC4_SNORM:
      return {4, 4, 8};
    case CU_AD_FORMAT_BC2_UNORM:
    case CU_AD_FORMAT_BC2_UNORM_SRGB:
    case CU_AD_FORMAT_BC3_UNORM:
    case CU_AD_FORMAT_BC3_UNORM_SRGB:
    case CU_AD_FORMAT_BC5_UNORM:
    case CU_AD_FORMAT_BC5_SNORM:
    case CU_AD_FORMAT_BC6H_UF16:
    case CU_AD_FORMAT_BC6H_SF16:
    case CU_AD_FORMAT_BC7_UNORM:
    case CU_AD_FORMAT_BC7_UNORM_SRGB:
      return {4, 4, 16};
    case CU_AD_FORMAT_NV12:  // luma for each element, two of chroma for four
      return {2, 2, 6};
    case CU_AD_FORMAT_P010:
    case CU_AD_FORMAT_P016:
      return {2, 2, 12};
    case CU_AD_FORMAT_NV16:
    case CU_AD_FORMAT_YUY2:
      return {2, 1, 4};
    case CU_AD_FORMAT_P210:
    case CU_AD_FORMAT_P216:
    case CU_AD_FORMAT_Y210:
    case CU_AD_FORMAT_Y216:
      return {2, 1, 8};
    case CU_AD_FORMAT_Y444_PLANAR8:
    case CU_AD_FORMAT_YUV444_8bit_SemiPlanar:
      return {1, 1, 3};
    case CU_AD_FORMAT_Y444_PLANAR10:
    case CU_AD_FORMAT_YUV444_16bit_SemiPlanar:
      return {1, 1, 6};
    case CU_AD_FORMAT_AYUV:
    case CU_AD_FORMAT_Y410:
    case CU_AD_FORMAT_UNORM_INT_101010_2:
      return {1, 1, 4};
    case CU_AD_FORMAT_Y416:
      return {1, 1, 8};
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
    case CU_AD_FORMAT_UNORM_INT8X1:
    case CU_AD_FORMAT_UNORM_INT8X2:
    case CU_AD_FORMAT_UNORM_INT8X4:
    case CU_AD_FORMAT_SNORM_INT8X1:
    case CU_AD_FORMAT_SNORM_INT8X2:
    case CU_AD_FORMAT_SNORM_INT8X4:
      return {1, 1, channels};
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
    case CU_AD_FORMAT_UNORM_INT16X1:
    case CU_AD_FORMAT_UNORM_INT16X2:
    case CU_AD_FORMAT_UNORM_INT16X4:
    case CU_AD_FORMAT_SNORM_INT16X1:
    case CU_AD_FORMAT_SNORM_INT16X2:
    case CU_AD_FORMAT_SNORM_INT16X4:
      return {1, 1, 2 * channels};
    default:  // 32-bit elements, which are the widest; a format that is newer than this list as well
      return {1, 1, 4 * channels};
  }
}

u64 multiply(u64 a, u64 b) {
  u64 product = 0;
  return __builtin_mul_overflow(a, b, &product) ? ~u64{0} : product;
}

u64 blocks(u64 elements, u64 in_one) {
  return elements / in_one + (elements % in_one != 0);
}

}  // namespace

u64 array_bytes(const CUDA_ARRAY3D_DESCRIPTOR& shape, u32 level) {
  if ((shape.Flags & kWithoutMemory) != 0) return 0;
  const Block block = block_of(wire::number_in(shape.Format), shape.NumChannels);
  const u64 width = std::max<u64>(1, shape.Width >> level);
  const u64 height = std::max<u64>(1, shape.Height >> level);
  const bool layered = (shape.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
  const u64 depth = std::max<u64>(1, layered ? shape.Depth : shape.Depth >> level);
  const u64 rows = multiply(blocks(height, block.height), depth);
  return multiply(multiply(blocks(width, block.width), block.bytes), rows);
}

// The driver makes as many levels as the size has, which may be fewer than asked for (cuda.h).
u64 mipmapped_bytes(const CUDA_ARRAY3D_DESCRIPTOR& shape, u32 levels) {
  const bool layered = (shape.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
  const u64 longest = std::max({u64{1}, u64{shape.Width}, u64{shape.Height}, layered ? 1 : u64{shape.Depth}});
  const auto most = static_cast<u32>(64 - __builtin_clzll(longest));
  u64 sum = 0;
  for (u32 level = 0; level < std::min(levels, most); ++level)
    if (__builtin_add_overflow(sum, array_bytes(shape, level), &sum)) return ~u64{0};
  return sum;
}

}  // namespace gpupool::worker
