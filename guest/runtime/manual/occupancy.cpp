// Occupancy: computed by the driver, remembered here by all arguments until an attribute of the function
// changes.
#include "guest/runtime/manual/occupancy.hpp"

#include <algorithm>

#include "guest/runtime/manual/answer_cache.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/function.hpp"
#include "guest/runtime/manual/launch.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

namespace {

using Key = AnswerKey<160>;

AnswerCache<Key, u64, 256>& cache() {
  return cache_at<AnswerCache<Key, u64, 256>>(thread_state().occupancy_answers);
}

// The handle differs for each function that ever was, and the epoch for each state of its attributes.
Key key_of(wire::Function question, const Function& function, int device) {
  Key key;
  key.add(static_cast<u32>(question));
  key.add(device);
  key.add(function.handle);
  key.add(function.epoch.load(std::memory_order_acquire));
  return key;
}

// The answer from memory, or asked with `put` writing the arguments after the function's handle.
template <typename Put>
CUresult ask(wire::Function question, const Function& function, const Key& key, u64& answer, Put put) {
  if (const u64* known = cache().find(key)) {
    answer = *known;
    return CUDA_SUCCESS;
  }
  Call call(question);
  call.put(function.handle);
  put(call);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  answer = call.get<u64>();
  cache().remember(key, answer);
  return CUDA_SUCCESS;
}

// The two cluster questions: both take a whole launch configuration.
CUresult ask_cluster(wire::Function question, int* out, CUfunction func, const CUlaunchConfig* config) {
  if (out == nullptr || config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Function* function = find(func);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*function, device); result != CUDA_SUCCESS) return result;
  LaunchAttributes attributes;
  const CUresult result = translate_attributes(config->attrs, config->numAttrs, attributes);
  if (result != CUDA_SUCCESS) return result;
  const wire::LaunchHeader header{function->handle,
                                  {config->gridDimX, config->gridDimY, config->gridDimZ},
                                  {config->blockDimX, config->blockDimY, config->blockDimZ},
                                  config->sharedMemBytes,
                                  static_cast<u16>(attributes.count),
                                  0};
  Key key = key_of(question, *function, device);
  key.add(header);
  key.add(attributes.values, attributes.count);
  u64 answer = 0;
  const CUresult asked = ask(question, *function, key, answer, [&](Call& call) {
    call.put(header);
    for (u32 i = 0; i < attributes.count; ++i) call.put(attributes.values[i]);
  });
  if (asked == CUDA_SUCCESS) *out = static_cast<int>(answer);
  return asked;
}

CUresult potential_block_size(int* grid_size, int* block_size, CUfunction func, CUoccupancyB2DSize shared_of,
                              size_t shared_bytes, int block_size_limit, unsigned int flags) {
  if (grid_size == nullptr || block_size == nullptr || block_size_limit < 0) return CUDA_ERROR_INVALID_VALUE;
  Function* function = find(func);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  CUresult error = device_of(*function, device);
  if (error != CUDA_SUCCESS) return error;
  const FunctionOnDevice* facts = facts_on(*function, device, error);
  if (facts == nullptr) return error;
  const wire::DeviceInfo& info = *device_info(device);
  const int warp = info.attributes[CU_DEVICE_ATTRIBUTE_WARP_SIZE];
  int most = info.attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK];
  const i32 of_function = facts->attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK].load();
  if (of_function != FunctionOnDevice::kUnknown) most = std::min(most, of_function);
  if (block_size_limit > 0) most = std::min(most, block_size_limit);
  if (warp <= 0 || most <= 0) return CUDA_ERROR_UNKNOWN;
  // From the largest block downwards: of equal occupancies the one with fewer, larger blocks wins, as
  // cuda_occupancy.h of the CUDA toolkit documents.
  const int threads_per_multiprocessor = info.attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR];
  int best_threads = 0;
  int best_block = 0;
  int best_blocks = 0;
  for (int rounded = (most + warp - 1) / warp * warp; rounded > 0; rounded -= warp) {
    const int block = std::min(rounded, most);
    const u64 shared = shared_of != nullptr ? shared_of(block) : shared_bytes;
    int blocks = 0;
    const CUresult result = active_blocks(*function, device, block, shared, flags, blocks);
    if (result != CUDA_SUCCESS) return result;
    if (block * blocks > best_threads) {
      best_threads = block * blocks;
      best_block = block;
      best_blocks = blocks;
    }
    if (best_threads >= threads_per_multiprocessor) break;
  }
  *block_size = best_block;
  *grid_size = best_blocks * info.attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
  return CUDA_SUCCESS;
}

}  // namespace

CUresult active_blocks(Function& function, int device, int block_size, u64 shared_bytes, unsigned int flags,
                       int& blocks) {
  constexpr wire::Function kQuestion = wire::Function::cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags;
  Key key = key_of(kQuestion, function, device);
  key.add(block_size);
  key.add(flags);
  key.add(shared_bytes);
  u64 answer = 0;
  const CUresult result = ask(kQuestion, function, key, answer, [&](Call& call) {
    call.put<i32>(block_size);
    call.put<u32>(flags);
    call.put<u64>(shared_bytes);
  });
  if (result == CUDA_SUCCESS) blocks = static_cast<int>(answer);
  return result;
}

namespace api {

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* numBlocks, CUfunction func, int blockSize,
                                                              size_t dynamicSMemSize, unsigned int flags) {
  if (numBlocks == nullptr || blockSize <= 0) return CUDA_ERROR_INVALID_VALUE;
  if ((flags & ~static_cast<u32>(CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE)) != 0)
    return CUDA_ERROR_INVALID_VALUE;
  Function* function = find(func);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*function, device); result != CUDA_SUCCESS) return result;
  return active_blocks(*function, device, blockSize, dynamicSMemSize, flags, *numBlocks);
}

CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* minGridSize, int* blockSize, CUfunction func,
                                                   CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                                   size_t dynamicSMemSize, int blockSizeLimit,
                                                   unsigned int flags) {
  return potential_block_size(minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize,
                              blockSizeLimit, flags);
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* dynamicSmemSize, CUfunction func, int numBlocks,
                                                 int blockSize) {
  if (dynamicSmemSize == nullptr || numBlocks <= 0 || blockSize <= 0) return CUDA_ERROR_INVALID_VALUE;
  const Function* function = find(func);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  int device = 0;
  if (const CUresult result = device_of(*function, device); result != CUDA_SUCCESS) return result;
  constexpr wire::Function kQuestion = wire::Function::cuOccupancyAvailableDynamicSMemPerBlock;
  Key key = key_of(kQuestion, *function, device);
  key.add(numBlocks);
  key.add(blockSize);
  u64 answer = 0;
  const CUresult result = ask(kQuestion, *function, key, answer, [&](Call& call) {
    call.put<i32>(numBlocks);
    call.put<i32>(blockSize);
  });
  if (result == CUDA_SUCCESS) *dynamicSmemSize = answer;
  return result;
}

CUresult cuOccupancyMaxPotentialClusterSize(int* clusterSize, CUfunction func, const CUlaunchConfig* config) {
  return ask_cluster(wire::Function::cuOccupancyMaxPotentialClusterSize, clusterSize, func, config);
}

CUresult cuOccupancyMaxActiveClusters(int* numClusters, CUfunction func, const CUlaunchConfig* config) {
  return ask_cluster(wire::Function::cuOccupancyMaxActiveClusters, numClusters, func, config);
}

}  // namespace api

}  // namespace gpupool::guest
