// Occupancy: how many blocks of a kernel fit into one multiprocessor of the machine model in device.hpp.
// Threads, blocks and shared memory limit; registers do not, for the engine has no register file to fill.
#include <algorithm>

#include "hostd/softgpu/api/launch.hpp"

namespace gpupool::softgpu {

namespace {

constexpr u32 kKnownFlags = CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE;

u64 shared_of_block(const Function& function, u64 dynamic) {
  return (function.info().static_shared_bytes + dynamic + kSharedReserved + 127) / 128 * 128;
}

}  // namespace

int blocks_per_sm(const Function& function, int block_size, u64 dynamic) {
  require(block_size > 0);
  const u32 most = std::min(function.info().max_threads, kMaxThreadsPerBlock);
  if (static_cast<u32>(block_size) > most) return 0;
  const u64 shared = shared_of_block(function, dynamic);
  if (shared > kSharedPerSm) return 0;
  const u64 threads = (static_cast<u64>(block_size) + kWarpSize - 1) / kWarpSize * kWarpSize;
  return static_cast<int>(
      std::min({static_cast<u64>(kBlocksPerSm), kThreadsPerSm / threads, kSharedPerSm / shared}));
}

namespace {

// The largest block that gives the highest number of resident threads.
void best_block(int* grid, int* block, const Function& function, CUoccupancyB2DSize dynamic_of,
                size_t dynamic, int limit) {
  require(grid != nullptr && block != nullptr && limit >= 0);
  int most = static_cast<int>(std::min(function.info().max_threads, kMaxThreadsPerBlock));
  if (limit != 0) most = std::min(most, limit);
  int best_threads = 0, best_size = 0, best_blocks = 0;
  for (int size = (most + 31) / 32 * 32; size > 0; size -= 32) {
    const int actual = std::min(size, most);
    const int blocks = blocks_per_sm(function, actual, dynamic_of != nullptr ? dynamic_of(actual) : dynamic);
    if (blocks * actual <= best_threads) continue;
    best_threads = blocks * actual;
    best_size = actual;
    best_blocks = blocks;
  }
  require(best_size != 0);
  *block = best_size;
  *grid = best_blocks * static_cast<int>(function.context->device->multiprocessors);
}

CUresult active_blocks(int* out, CUfunction handle, int block_size, size_t dynamic, u32 flags) {
  return call([&] {
    require(out != nullptr && (flags & ~kKnownFlags) == 0);
    *out = blocks_per_sm(*resolve_function(handle), block_size, dynamic);
  });
}

}  // namespace

GPUPOOL_CUDA CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction function,
                                                                  int block_size, size_t dynamic) {
  return active_blocks(out, function, block_size, dynamic, 0);
}

GPUPOOL_CUDA CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, CUfunction function,
                                                                           int block_size, size_t dynamic,
                                                                           unsigned int flags) {
  return active_blocks(out, function, block_size, dynamic, flags);
}

GPUPOOL_CUDA CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction function,
                                                       CUoccupancyB2DSize dynamic_of, size_t dynamic,
                                                       int limit) {
  return call([&] { best_block(grid, block, *resolve_function(function), dynamic_of, dynamic, limit); });
}

GPUPOOL_CUDA CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, CUfunction function,
                                                                CUoccupancyB2DSize dynamic_of, size_t dynamic,
                                                                int limit, unsigned int flags) {
  return call([&] {
    require((flags & ~kKnownFlags) == 0);
    best_block(grid, block, *resolve_function(function), dynamic_of, dynamic, limit);
  });
}

GPUPOOL_CUDA CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* out, CUfunction handle, int blocks,
                                                              int block_size) {
  return call([&] {
    require(out != nullptr && blocks > 0 && block_size > 0 && blocks <= static_cast<int>(kBlocksPerSm));
    const auto function = resolve_function(handle);
    require(static_cast<u64>(blocks) * static_cast<u64>(block_size) <= kThreadsPerSm);
    const u64 each = kSharedPerSm / static_cast<u32>(blocks) / 128 * 128;
    const u64 taken = function->info().static_shared_bytes + kSharedReserved;
    const u64 free = each > taken ? each - taken : 0;
    const u64 most = kSharedPerBlockOptin - function->info().static_shared_bytes;
    *out = std::min(free, most);
  });
}

}  // namespace gpupool::softgpu
