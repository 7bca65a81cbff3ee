// Nodes that work on memory: allocations and frees, whose addresses the driver picks when the node is added,
// and memory operations.
#include <algorithm>
#include <cstring>

#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_params.hpp"
#include "guest/runtime/manual/graph_place.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

// cuda.h: a graph's memory is on a device; handles to it cannot be exported.
CUresult put_allocation(Call& call, const CUDA_MEM_ALLOC_NODE_PARAMS& params) {
  if (params.bytesize == 0 || params.accessDescCount > wire::kMaxDevices ||
      (params.accessDescs == nullptr && params.accessDescCount != 0))
    return CUDA_ERROR_INVALID_VALUE;
  const auto to_session = [](CUmemLocation& location) {
    if (location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
    location.id = session_device(location.id);
    return location.id < 0 ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
  };
  CUmemPoolProps properties = params.poolProps;
  properties.win32SecurityAttributes = nullptr;
  if (const CUresult result = to_session(properties.location); result != CUDA_SUCCESS) return result;
  std::vector<CUmemAccessDesc> access(params.accessDescs, params.accessDescs + params.accessDescCount);
  for (CUmemAccessDesc& each : access)
    if (const CUresult result = to_session(each.location); result != CUDA_SUCCESS) return result;
  call.put(properties);
  call.put_array(access.data(), access.size());
  call.put<u64>(params.bytesize);
  return CUDA_SUCCESS;
}

// The program's number of a device that the worker names.
int program_device(int session_index) {
  for (u32 device = 0; device < device_count(); ++device)
    if (session_device(static_cast<int>(device)) == session_index) return static_cast<int>(device);
  return -1;
}

CUresult put_steps(Call& call, CUcontext handle, const CUstreamBatchMemOpParams* steps, unsigned count,
                   unsigned flags) {
  if (steps == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  u32 context = 0;
  if (const CUresult result = context_index(handle, context); result != CUDA_SUCCESS) return result;
  call.put(context);
  call.put(static_cast<u32>(flags));
  call.put_array(steps, count);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult add_memory_operations(const Place& place, CUcontext context, const CUstreamBatchMemOpParams* steps,
                               unsigned count, unsigned flags) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddBatchMemOpNode);
  place.put(call);
  const CUresult result = put_steps(call, context, steps, count, flags);
  return result == CUDA_SUCCESS ? place.add(call) : result;
}

CUresult add_allocation(const Place& place, CUDA_MEM_ALLOC_NODE_PARAMS& params) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddMemAllocNode);
  place.put(call);
  if (const CUresult result = put_allocation(call, params); result != CUDA_SUCCESS) return result;
  if (const CUresult result = place.add(call); result != CUDA_SUCCESS) return result;
  Allocation allocation;
  allocation.address = call.get<u64>();
  allocation.size = params.bytesize;
  allocation.kind = MemoryKind::graph;
  g_graphs_allocate.store(true, std::memory_order_relaxed);
  allocation.device = params.poolProps.location.id;
  // A node that allocates cannot be taken out of its graph (CUDA programming guide, "Graph Memory Nodes"), so
  // there is no second try.
  if (!adopt_device_memory(allocation)) return CUDA_ERROR_OUT_OF_MEMORY;
  params.dptr = allocation.address;
  return CUDA_SUCCESS;
}

CUresult add_free(const Place& place, CUdeviceptr address) {
  if (!place.valid()) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphAddMemFreeNode);
  place.put(call);
  call.put<u64>(address);
  const CUresult result = place.add(call);
  // When a launch frees it, its address may go to somebody else, and we are not told.
  if (result == CUDA_SUCCESS) address_space().lend(address);
  return result;
}

namespace api {

CUresult cuGraphAddMemAllocNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                size_t count, CUDA_MEM_ALLOC_NODE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add_allocation({out, graph, dependencies, count}, *params);
}

CUresult cuGraphAddMemFreeNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies, size_t count,
                               CUdeviceptr address) {
  return add_free({out, graph, dependencies, count}, address);
}

CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphMemAllocNodeGetParams);
  call.put(bits(node));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *params = CUDA_MEM_ALLOC_NODE_PARAMS{};
  params->poolProps = call.get<CUmemPoolProps>();
  params->poolProps.location.id = program_device(params->poolProps.location.id);
  CUmemAccessDesc access[wire::kMaxDevices];
  const u64 count = call.get_array(access, wire::kMaxDevices);
  params->bytesize = call.get<u64>();
  params->dptr = call.get<u64>();
  params->accessDescCount = count < wire::kMaxDevices ? count : wire::kMaxDevices;
  if (params->accessDescCount == 0) return CUDA_SUCCESS;
  for (size_t i = 0; i < params->accessDescCount; ++i)
    access[i].location.id = program_device(access[i].location.id);
  const std::shared_ptr<NodeStorage> storage = node_storage(node);
  storage->words.resize((sizeof access + 7) / 8);
  std::memcpy(storage->words.data(), access, sizeof access);
  params->accessDescs = reinterpret_cast<CUmemAccessDesc*>(storage->words.data());
  return CUDA_SUCCESS;
}

CUresult cuGraphAddBatchMemOpNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                  size_t count, const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add_memory_operations({out, graph, dependencies, count}, params->ctx, params->paramArray,
                               params->count, params->flags);
}

CUresult cuGraphBatchMemOpNodeGetParams(CUgraphNode node, CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphBatchMemOpNodeGetParams);
  call.put(bits(node));
  call.expect_answer(wire::kMostMemoryOperations * sizeof(CUstreamBatchMemOpParams) + 64);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *params = CUDA_BATCH_MEM_OP_NODE_PARAMS{};
  params->flags = call.get<u32>();
  std::vector<CUstreamBatchMemOpParams> steps(wire::kMostMemoryOperations);
  steps.resize(std::min<u64>(call.get_array(steps.data(), steps.size()), steps.size()));
  const u32 context = call.get<u32>();
  g_contexts.each([&](Context& each) {
    if (each.index == context) params->ctx = reinterpret_cast<CUcontext>(&each);
  });
  params->count = static_cast<unsigned>(steps.size());
  if (steps.empty()) return CUDA_SUCCESS;
  const std::shared_ptr<NodeStorage> storage = node_storage(node);
  static_assert(sizeof(CUstreamBatchMemOpParams) % sizeof(u64) == 0);
  storage->words.resize(steps.size() * sizeof steps[0] / sizeof(u64));
  std::memcpy(storage->words.data(), steps.data(), steps.size() * sizeof steps[0]);
  params->paramArray = reinterpret_cast<CUstreamBatchMemOpParams*>(storage->words.data());
  return CUDA_SUCCESS;
}

CUresult cuGraphBatchMemOpNodeSetParams(CUgraphNode node, const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphBatchMemOpNodeSetParams);
  call.put(bits(node));
  const CUresult result = put_steps(call, params->ctx, params->paramArray, params->count, params->flags);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

CUresult cuGraphExecBatchMemOpNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                            const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
  if (exec == nullptr || node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphExecBatchMemOpNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  const CUresult result = put_steps(call, params->ctx, params->paramArray, params->count, params->flags);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

}  // namespace api
}  // namespace gpupool::guest
