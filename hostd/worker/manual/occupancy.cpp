// Occupancy questions. The client remembers the answers, each one u64.
#include "hostd/worker/manual/function.hpp"
#include "hostd/worker/manual/launch.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

CUresult answer(Request& request, CUresult result, u64 value) {
  if (result == CUDA_SUCCESS) request.out->put<u64>(value);
  return result;
}

// The function in the current context, as the calculator wants it.
CUresult find_function(Worker& worker, const Request& request, wire::Handle handle, CUfunction& function) {
  FunctionEntry* entry = worker.functions.find(handle);
  return entry == nullptr ? CUDA_ERROR_INVALID_HANDLE
                          : in_context(worker, *entry, request.context_index, function);
}

// wire::Handle function, LaunchHeader, LaunchAttribute[] -> u64.
template <typename Ask>
CUresult handle_cluster_question(Worker& worker, Request& request, Ask ask) {
  const auto handle = request.in.get<wire::Handle>();
  const auto header = request.in.get<wire::LaunchHeader>();
  if (header.attribute_count > wire::kMaxLaunchAttributes)
    throw wire::ProtocolError("too many launch attributes");
  CUlaunchAttribute attributes[wire::kMaxLaunchAttributes];
  CUresult result = read_launch_attributes(worker, request, header.attribute_count, attributes);
  if (result != CUDA_SUCCESS) return result;
  request.in.finish();
  CUfunction function = nullptr;
  if (result = find_function(worker, request, handle, function); result != CUDA_SUCCESS) return result;
  if (ask == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const CUlaunchConfig config = launch_config(header, nullptr, attributes, header.attribute_count);
  int value = 0;
  result = ask(&value, function, &config);
  return answer(request, result, static_cast<u64>(value));
}

}  // namespace

// wire::Handle function, i32 block size, u32 flags, u64 shared bytes -> u64 blocks.
CUresult handle_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto block_size = request.in.get<i32>();
  const auto flags = request.in.get<u32>();
  const auto shared_bytes = request.in.get<u64>();
  request.in.finish();
  CUfunction function = nullptr;
  CUresult result = find_function(worker, request, handle, function);
  if (result != CUDA_SUCCESS) return result;
  int blocks = 0;
  result = worker.driver.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&blocks, function, block_size,
                                                                              shared_bytes, flags);
  return answer(request, result, static_cast<u64>(blocks));
}

// wire::Handle function, i32 blocks, i32 block size -> u64 bytes.
CUresult handle_cuOccupancyAvailableDynamicSMemPerBlock(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto blocks = request.in.get<i32>();
  const auto block_size = request.in.get<i32>();
  request.in.finish();
  CUfunction function = nullptr;
  CUresult result = find_function(worker, request, handle, function);
  if (result != CUDA_SUCCESS) return result;
  size_t bytes = 0;
  result = worker.driver.cuOccupancyAvailableDynamicSMemPerBlock(&bytes, function, blocks, block_size);
  return answer(request, result, bytes);
}

CUresult handle_cuOccupancyMaxPotentialClusterSize(Worker& worker, Request& request) {
  return handle_cluster_question(worker, request, worker.driver.cuOccupancyMaxPotentialClusterSize);
}

CUresult handle_cuOccupancyMaxActiveClusters(Worker& worker, Request& request) {
  return handle_cluster_question(worker, request, worker.driver.cuOccupancyMaxActiveClusters);
}

}  // namespace gpupool::worker
