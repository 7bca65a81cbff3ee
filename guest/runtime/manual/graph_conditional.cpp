// Conditional nodes. Their handles are 64-bit names that kernels take, so they travel as they are; the graphs
// inside a node get handles of the worker's.
#include "guest/runtime/manual/graph_params.hpp"
#include "guest/runtime/manual/graph_place.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {

CUresult add_conditional(const Place& place, CUDA_CONDITIONAL_NODE_PARAMS& params) {
  if (!place.valid() || params.size == 0 || params.size > wire::kMostBodies) return CUDA_ERROR_INVALID_VALUE;
  // A kind that this version does not know: a newer driver might.
  if (static_cast<u32>(params.type) > CU_GRAPH_COND_TYPE_SWITCH) return CUDA_ERROR_INVALID_VALUE;
  u32 context = 0;
  if (const CUresult result = context_index(params.ctx, context); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuGraphAddNode);
  place.put(call);
  call.put<u64>(params.handle);
  call.put(static_cast<u32>(params.type));
  call.put(static_cast<u32>(params.size));
  call.put(context);
  call.expect_answer(params.size * sizeof(u64) + 64);
  if (const CUresult result = place.add(call); result != CUDA_SUCCESS) return result;
  // cuda.h: the array is the driver's and lives as long as the node.
  const std::shared_ptr<NodeStorage> storage = node_storage(*place.out);
  storage->words.assign(params.size, 0);
  call.get_array(storage->words.data(), storage->words.size());
  params.phGraph_out = reinterpret_cast<CUgraph*>(storage->words.data());
  return CUDA_SUCCESS;
}

namespace api {

CUresult cuGraphConditionalHandleCreate(CUgraphConditionalHandle* out, CUgraph graph, CUcontext handle,
                                        unsigned int value, unsigned int flags) {
  if (out == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  u32 context = 0;
  if (const CUresult result = context_index(handle, context); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuGraphConditionalHandleCreate);
  call.put(bits(graph));
  call.put(context);
  call.put(static_cast<u32>(value));
  call.put(static_cast<u32>(flags));
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) *out = call.get<u64>();
  return result;
}

}  // namespace api
}  // namespace gpupool::guest
