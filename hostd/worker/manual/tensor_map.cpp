#include <cstring>
#include <iterator>

#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

constexpr u32 kMaxRank = 5;
// The highest value of each number that is an enum of cuda.h; the two pixel boxes may be anything.
constexpr u32 kHighest[] = {CU_TENSOR_MAP_DATA_TYPE_16U6_ALIGN16B,
                            CU_TENSOR_MAP_INTERLEAVE_32B,
                            CU_TENSOR_MAP_SWIZZLE_128B_ATOM_64B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
                            ~0u,
                            ~0u,
                            CU_TENSOR_MAP_IM2COL_WIDE_MODE_W128};

// The message of guest/runtime/manual/tensor_map.cpp, checked.
struct Arguments {
  u32 rank = 0;
  void* address = nullptr;
  std::vector<u64> dimensions, strides;
  std::vector<u32> element_strides, box;
  std::vector<i32> lower, upper;
  std::vector<u32> numbers;

  [[nodiscard]] bool known() const {
    for (u64 i = 0; i < std::size(kHighest); ++i)
      if (numbers[i] > kHighest[i]) return false;
    return true;
  }
  template <typename Enum>
  [[nodiscard]] Enum number(u64 index) const {
    return static_cast<Enum>(numbers[index]);
  }
};

Arguments read_arguments(Request& request, u32 lowest_rank) {
  Arguments arguments;
  arguments.rank = request.in.get<u32>();
  if (arguments.rank < lowest_rank || arguments.rank > kMaxRank) throw wire::ProtocolError("tensor rank");
  arguments.address = reinterpret_cast<void*>(request.in.get<u64>());
  arguments.dimensions = request.in.get_array<u64>(kMaxRank);
  arguments.strides = request.in.get_array<u64>(kMaxRank);
  arguments.element_strides = request.in.get_array<u32>(kMaxRank);
  arguments.box = request.in.get_array<u32>(kMaxRank);
  arguments.lower = request.in.get_array<i32>(kMaxRank);
  arguments.upper = request.in.get_array<i32>(kMaxRank);
  arguments.numbers = request.in.get_array<u32>(std::size(kHighest));
  request.in.finish();
  // The driver reads as many elements as the rank says.
  if (arguments.dimensions.size() != arguments.rank || arguments.strides.size() + 1 != arguments.rank ||
      arguments.element_strides.size() != arguments.rank || arguments.box.size() != kMaxRank ||
      arguments.lower.size() != kMaxRank || arguments.upper.size() != kMaxRank ||
      arguments.numbers.size() != std::size(kHighest))
    throw wire::ProtocolError("tensor map arrays do not fit their rank");
  arguments.strides.resize(kMaxRank);  // rank 1 has none, but the driver wants a pointer
  return arguments;
}

CUresult answer(Request& request, CUresult result, const CUtensorMap& map) {
  if (result == CUDA_SUCCESS) request.out->put_array(map.opaque, CU_TENSOR_MAP_NUM_QWORDS);
  return result;
}

}  // namespace

CUresult handle_cuTensorMapEncodeTiled(Worker& worker, Request& request) {
  const Arguments in = read_arguments(request, 1);
  if (!in.known()) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuTensorMapEncodeTiled == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUtensorMap map{};
  const CUresult result = worker.driver.cuTensorMapEncodeTiled(
      &map, in.number<CUtensorMapDataType>(0), in.rank, in.address, in.dimensions.data(), in.strides.data(),
      in.box.data(), in.element_strides.data(), in.number<CUtensorMapInterleave>(1),
      in.number<CUtensorMapSwizzle>(2), in.number<CUtensorMapL2promotion>(3),
      in.number<CUtensorMapFloatOOBfill>(4));
  return answer(request, result, map);
}

CUresult handle_cuTensorMapEncodeIm2col(Worker& worker, Request& request) {
  const Arguments in = read_arguments(request, 3);
  if (!in.known()) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuTensorMapEncodeIm2col == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUtensorMap map{};
  const CUresult result = worker.driver.cuTensorMapEncodeIm2col(
      &map, in.number<CUtensorMapDataType>(0), in.rank, in.address, in.dimensions.data(), in.strides.data(),
      in.lower.data(), in.upper.data(), in.numbers[5], in.numbers[6], in.element_strides.data(),
      in.number<CUtensorMapInterleave>(1), in.number<CUtensorMapSwizzle>(2),
      in.number<CUtensorMapL2promotion>(3), in.number<CUtensorMapFloatOOBfill>(4));
  return answer(request, result, map);
}

CUresult handle_cuTensorMapEncodeIm2colWide(Worker& worker, Request& request) {
  const Arguments in = read_arguments(request, 3);
  if (!in.known()) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuTensorMapEncodeIm2colWide == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUtensorMap map{};
  const CUresult result = worker.driver.cuTensorMapEncodeIm2colWide(
      &map, in.number<CUtensorMapDataType>(0), in.rank, in.address, in.dimensions.data(), in.strides.data(),
      in.lower[0], in.upper[0], in.numbers[5], in.numbers[6], in.element_strides.data(),
      in.number<CUtensorMapInterleave>(1), in.number<CUtensorMapIm2ColWideMode>(7),
      in.number<CUtensorMapSwizzle>(2), in.number<CUtensorMapL2promotion>(3),
      in.number<CUtensorMapFloatOOBfill>(4));
  return answer(request, result, map);
}

// u64 map[16], u64 address -> u64 map[16].
CUresult handle_cuTensorMapReplaceAddress(Worker& worker, Request& request) {
  const std::vector<u64> opaque = request.in.get_array<u64>(CU_TENSOR_MAP_NUM_QWORDS);
  const auto address = request.in.get<u64>();
  request.in.finish();
  if (opaque.size() != CU_TENSOR_MAP_NUM_QWORDS) throw wire::ProtocolError("tensor map of a wrong size");
  if (worker.driver.cuTensorMapReplaceAddress == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUtensorMap map{};
  std::memcpy(map.opaque, opaque.data(), sizeof map.opaque);
  const CUresult result = worker.driver.cuTensorMapReplaceAddress(&map, reinterpret_cast<void*>(address));
  return answer(request, result, map);
}

}  // namespace gpupool::worker
