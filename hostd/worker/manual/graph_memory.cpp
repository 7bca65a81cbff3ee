// Nodes that work on memory. Addresses travel as they are: the driver checks them.
#include "hostd/worker/manual/graph_params.hpp"
#include "hostd/worker/manual/graph_place.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "wire/cpp/device_info.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// u32 context, u32 flags, CUstreamBatchMemOpParams[].
struct Steps {
  std::vector<CUstreamBatchMemOpParams> steps;
  CUDA_BATCH_MEM_OP_NODE_PARAMS params{};

  void read(Worker& worker, Request& request) {
    const auto context = request.in.get<u32>();
    params.flags = request.in.get<u32>();
    steps = request.in.get_array<CUstreamBatchMemOpParams>(wire::kMostMemoryOperations);
    params.ctx = find_context(worker, request, context);
    params.count = static_cast<unsigned>(steps.size());
    params.paramArray = steps.data();
  }
};

// The session's number of one of the host's devices, or -1.
i32 session_index(const Worker& worker, CUdevice device) {
  for (size_t i = 0; i < worker.devices.size(); ++i)
    if (worker.devices[i] == device) return static_cast<i32>(i);
  return -1;
}

}  // namespace

// ..., CUmemPoolProps, CUmemAccessDesc[], u64 bytes -> node, u64 address.
CUresult handle_cuGraphAddMemAllocNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  CUDA_MEM_ALLOC_NODE_PARAMS params{};
  params.poolProps = request.in.get<CUmemPoolProps>();
  auto access = request.in.get_array<CUmemAccessDesc>(wire::kMaxDevices);
  params.bytesize = request.in.get<u64>();
  if (const CUresult result = localize(worker, params.poolProps); result != CUDA_SUCCESS) return result;
  for (CUmemAccessDesc& each : access)
    if (const CUresult result = localize(worker, each); result != CUDA_SUCCESS) return result;
  params.accessDescs = access.empty() ? nullptr : access.data();
  params.accessDescCount = access.size();
  if (worker.driver.cuGraphAddMemAllocNode == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const CUresult result = add_node(
      worker, request, place, [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
        return worker.driver.cuGraphAddMemAllocNode(node, graph, from, count, &params);
      });
  if (result == CUDA_SUCCESS) request.out->put<u64>(params.dptr);
  return result;
}

CUresult handle_cuGraphAddMemFreeNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  const auto address = request.in.get<u64>();
  if (worker.driver.cuGraphAddMemFreeNode == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    return worker.driver.cuGraphAddMemFreeNode(node, graph, from, count, address);
                  });
}

// node -> CUmemPoolProps, CUmemAccessDesc[], u64 bytes, u64 address.
CUresult handle_cuGraphMemAllocNodeGetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  if (worker.driver.cuGraphMemAllocNodeGetParams == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUDA_MEM_ALLOC_NODE_PARAMS params{};
  const CUresult result = worker.driver.cuGraphMemAllocNodeGetParams(of.node, &params);
  if (result != CUDA_SUCCESS) return result;
  params.poolProps.win32SecurityAttributes = nullptr;
  params.poolProps.location.id = session_index(worker, params.poolProps.location.id);
  std::vector<CUmemAccessDesc> access;
  for (size_t i = 0; params.accessDescs != nullptr && i < params.accessDescCount; ++i) {
    access.push_back(params.accessDescs[i]);
    access.back().location.id = session_index(worker, access.back().location.id);
  }
  request.out->put(params.poolProps);
  request.out->put_array(access.data(), access.size());
  request.out->put<u64>(params.bytesize);
  request.out->put<u64>(params.dptr);
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphAddBatchMemOpNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  Steps steps;
  steps.read(worker, request);
  if (worker.driver.cuGraphAddBatchMemOpNode == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  return add_node(worker, request, place,
                  [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
                    return worker.driver.cuGraphAddBatchMemOpNode(node, graph, from, count, &steps.params);
                  });
}

// node -> u32 flags, CUstreamBatchMemOpParams[], u32 context.
CUresult handle_cuGraphBatchMemOpNodeGetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  if (worker.driver.cuGraphBatchMemOpNodeGetParams == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUDA_BATCH_MEM_OP_NODE_PARAMS params{};
  const CUresult result = worker.driver.cuGraphBatchMemOpNodeGetParams(of.node, &params);
  if (result != CUDA_SUCCESS) return result;
  std::vector<CUstreamBatchMemOpParams> steps;
  if (params.paramArray != nullptr) steps.assign(params.paramArray, params.paramArray + params.count);
  for (CUstreamBatchMemOpParams& step : steps) {
    // The driver's own note in the struct is no business of the client's (cuda.h: "for driver internal use").
    const bool wait =
        step.operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 || step.operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
    if (wait) step.waitValue.alias = 0;
  }
  request.out->put(params.flags);
  request.out->put_array(steps.data(), steps.size());
  request.out->put(params.ctx == nullptr ? 0u : worker.contexts.name_of(params.ctx).index());
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphBatchMemOpNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  Steps steps;
  steps.read(worker, request);
  if (worker.driver.cuGraphBatchMemOpNodeSetParams == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  return worker.driver.cuGraphBatchMemOpNodeSetParams(of.node, &steps.params);
}

CUresult handle_cuGraphExecBatchMemOpNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, true); result != CUDA_SUCCESS) return result;
  Steps steps;
  steps.read(worker, request);
  if (worker.driver.cuGraphExecBatchMemOpNodeSetParams == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  return worker.driver.cuGraphExecBatchMemOpNodeSetParams(of.exec, of.node, &steps.params);
}

}  // namespace gpupool::worker
