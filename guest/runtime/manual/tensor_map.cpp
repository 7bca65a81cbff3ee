// Tensor maps (TMA descriptors): pure functions of their arguments, encoded by the driver. The 128 bytes hold
// the device address as it is, so they need no translation; they are remembered, since some libraries encode
// before every launch.
#include "guest/runtime/manual/answer_cache.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

namespace {

constexpr u32 kMaxRank = 5;  // cuda.h: "tensorRank must be between 1 and 5"

// cuda.h aligns the program's object to 64 bytes, but driver 580 takes any address (measured), and XLA relies
// on it.
struct Encoded {
  u64 opaque[CU_TENSOR_MAP_NUM_QWORDS] = {};
};

// Arguments, once as a key and once as a message: both are the same bytes, with arrays at their fixed
// longest.
struct Arguments {
  wire::Function function;
  u32 rank;
  u64 address = 0;
  u64 dimensions[kMaxRank] = {};
  u64 strides[kMaxRank] = {};
  u32 element_strides[kMaxRank] = {};
  u32 box[kMaxRank] = {};    // tiled
  i32 lower[kMaxRank] = {};  // im2col corners: rank - 2 of them; the wide form has one
  i32 upper[kMaxRank] = {};
  u32 numbers[8] = {};  // enums and counts in the function's order
};

CUresult encode(CUtensorMap* out, const Arguments& arguments) {
  using Key = AnswerKey<sizeof(Arguments)>;
  auto& known = cache_at<AnswerCache<Key, Encoded, 64>>(thread_state().tensor_maps);
  Key key;
  key.add(arguments);
  if (const Encoded* encoded = known.find(key)) {
    std::memcpy(out, encoded, sizeof *encoded);
    return CUDA_SUCCESS;
  }
  Call call(arguments.function);
  call.put(arguments.rank);
  call.put(arguments.address);
  call.put_array(arguments.dimensions, arguments.rank);
  call.put_array(arguments.strides, arguments.rank - 1);
  call.put_array(arguments.element_strides, arguments.rank);
  call.put_array(arguments.box, kMaxRank);
  call.put_array(arguments.lower, kMaxRank);
  call.put_array(arguments.upper, kMaxRank);
  call.put_array(arguments.numbers, std::size(arguments.numbers));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  Encoded encoded;
  if (call.get_array(encoded.opaque, CU_TENSOR_MAP_NUM_QWORDS) != CU_TENSOR_MAP_NUM_QWORDS)
    return CUDA_ERROR_UNKNOWN;
  known.remember(key, encoded);
  std::memcpy(out, &encoded, sizeof encoded);
  return CUDA_SUCCESS;
}

// What the three encoders share. INVALID_VALUE for what would lead reading the arrays astray.
CUresult begin(Arguments& arguments, wire::Function function, const CUtensorMap* map, cuuint32_t rank,
               cuuint32_t lowest_rank, const void* address, const cuuint64_t* dimensions,
               const cuuint64_t* strides, const cuuint32_t* element_strides) {
  std::memset(static_cast<void*>(&arguments), 0, sizeof arguments);  // padding is part of the key
  if (map == nullptr || rank < lowest_rank || rank > kMaxRank) return CUDA_ERROR_INVALID_VALUE;
  // Rank 1 has no strides, but the driver wants a pointer all the same (measured on driver 580).
  if (dimensions == nullptr || element_strides == nullptr || strides == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  arguments.function = function;
  arguments.rank = rank;
  arguments.address = reinterpret_cast<u64>(address);
  std::memcpy(arguments.dimensions, dimensions, rank * sizeof(u64));
  if (rank > 1) std::memcpy(arguments.strides, strides, (rank - 1) * sizeof(u64));
  std::memcpy(arguments.element_strides, element_strides, rank * sizeof(u32));
  return CUDA_SUCCESS;
}

}  // namespace

namespace api {

CUresult cuTensorMapEncodeTiled(CUtensorMap* tensorMap, CUtensorMapDataType tensorDataType,
                                cuuint32_t tensorRank, void* globalAddress, const cuuint64_t* globalDim,
                                const cuuint64_t* globalStrides, const cuuint32_t* boxDim,
                                const cuuint32_t* elementStrides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2Promotion,
                                CUtensorMapFloatOOBfill oobFill) {
  Arguments arguments;
  const CUresult result = begin(arguments, wire::Function::cuTensorMapEncodeTiled, tensorMap, tensorRank, 1,
                                globalAddress, globalDim, globalStrides, elementStrides);
  if (result != CUDA_SUCCESS) return result;
  if (boxDim == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(arguments.box, boxDim, tensorRank * sizeof(u32));
  const u32 numbers[] = {tensorDataType, interleave, swizzle, l2Promotion, oobFill};
  std::memcpy(arguments.numbers, numbers, sizeof numbers);
  return encode(tensorMap, arguments);
}

CUresult cuTensorMapEncodeIm2col(CUtensorMap* tensorMap, CUtensorMapDataType tensorDataType,
                                 cuuint32_t tensorRank, void* globalAddress, const cuuint64_t* globalDim,
                                 const cuuint64_t* globalStrides, const int* pixelBoxLowerCorner,
                                 const int* pixelBoxUpperCorner, cuuint32_t channelsPerPixel,
                                 cuuint32_t pixelsPerColumn, const cuuint32_t* elementStrides,
                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                 CUtensorMapL2promotion l2Promotion, CUtensorMapFloatOOBfill oobFill) {
  Arguments arguments;
  const CUresult result = begin(arguments, wire::Function::cuTensorMapEncodeIm2col, tensorMap, tensorRank, 3,
                                globalAddress, globalDim, globalStrides, elementStrides);
  if (result != CUDA_SUCCESS) return result;
  if (pixelBoxLowerCorner == nullptr || pixelBoxUpperCorner == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(arguments.lower, pixelBoxLowerCorner, (tensorRank - 2) * sizeof(i32));
  std::memcpy(arguments.upper, pixelBoxUpperCorner, (tensorRank - 2) * sizeof(i32));
  const u32 numbers[] = {tensorDataType, interleave,       swizzle,        l2Promotion,
                         oobFill,        channelsPerPixel, pixelsPerColumn};
  std::memcpy(arguments.numbers, numbers, sizeof numbers);
  return encode(tensorMap, arguments);
}

CUresult cuTensorMapEncodeIm2colWide(CUtensorMap* tensorMap, CUtensorMapDataType tensorDataType,
                                     cuuint32_t tensorRank, void* globalAddress, const cuuint64_t* globalDim,
                                     const cuuint64_t* globalStrides, int pixelBoxLowerCornerWidth,
                                     int pixelBoxUpperCornerWidth, cuuint32_t channelsPerPixel,
                                     cuuint32_t pixelsPerColumn, const cuuint32_t* elementStrides,
                                     CUtensorMapInterleave interleave, CUtensorMapIm2ColWideMode mode,
                                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2Promotion,
                                     CUtensorMapFloatOOBfill oobFill) {
  Arguments arguments;
  const CUresult result = begin(arguments, wire::Function::cuTensorMapEncodeIm2colWide, tensorMap, tensorRank,
                                3, globalAddress, globalDim, globalStrides, elementStrides);
  if (result != CUDA_SUCCESS) return result;
  arguments.lower[0] = pixelBoxLowerCornerWidth;
  arguments.upper[0] = pixelBoxUpperCornerWidth;
  const u32 numbers[] = {tensorDataType, interleave,       swizzle,         l2Promotion,
                         oobFill,        channelsPerPixel, pixelsPerColumn, mode};
  std::memcpy(arguments.numbers, numbers, sizeof numbers);
  return encode(tensorMap, arguments);
}

CUresult cuTensorMapReplaceAddress(CUtensorMap* tensorMap, void* globalAddress) {
  if (tensorMap == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuTensorMapReplaceAddress);
  call.put_array(tensorMap->opaque, CU_TENSOR_MAP_NUM_QWORDS);
  call.put(reinterpret_cast<u64>(globalAddress));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  u64 opaque[CU_TENSOR_MAP_NUM_QWORDS];
  if (call.get_array(opaque, CU_TENSOR_MAP_NUM_QWORDS) != CU_TENSOR_MAP_NUM_QWORDS) return CUDA_ERROR_UNKNOWN;
  std::memcpy(tensorMap->opaque, opaque, sizeof opaque);
  return CUDA_SUCCESS;
}

}  // namespace api

}  // namespace gpupool::guest
