// Conditional nodes. Their handles are 64-bit names that kernels take: the driver checks them.
#include "hostd/worker/manual/graph_params.hpp"
#include "hostd/worker/manual/graph_place.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {

// graph, u32 context, u32 default value, u32 flags -> u64 handle.
CUresult handle_cuGraphConditionalHandleCreate(Worker& worker, Request& request) {
  const CUgraph* graph = worker.graphs.find(request.in.get<wire::Handle>());
  const CUcontext context = find_context(worker, request, request.in.get<u32>());
  const auto value = request.in.get<u32>();
  const auto flags = request.in.get<u32>();
  if (graph == nullptr || context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuGraphConditionalHandleCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUgraphConditionalHandle handle = 0;
  const CUresult result =
      worker.driver.cuGraphConditionalHandleCreate(&handle, *graph, context, value, flags);
  if (result == CUDA_SUCCESS) request.out->put<u64>(handle);
  return result;
}

// ..., u64 conditional handle, u32 type, u32 size, u32 context -> node, graph[size].
CUresult handle_cuGraphAddNode(Worker& worker, Request& request) {
  Place place;
  if (const CUresult result = read_place(worker, request, place); result != CUDA_SUCCESS) return result;
  CUgraphNodeParams params{};
  params.type = CU_GRAPH_NODE_TYPE_CONDITIONAL;
  params.conditional.handle = request.in.get<u64>();
  params.conditional.type =
      static_cast<CUgraphConditionalNodeType>(request.in.get_enum<u32>(CU_GRAPH_COND_TYPE_SWITCH));
  params.conditional.size = request.in.get_enum<u32>(wire::kMostBodies);
  params.conditional.ctx = find_context(worker, request, request.in.get<u32>());
  if (worker.driver.cuGraphAddNode == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUgraphNode made = nullptr;
  const CUresult result = add_node(
      worker, request, place, [&](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
        const CUresult added = worker.driver.cuGraphAddNode(node, graph, from, count, &params);
        made = *node;
        return added;
      });
  if (result != CUDA_SUCCESS) return result;
  const CUgraph* const bodies = params.conditional.phGraph_out;
  std::vector<wire::Handle> names;
  for (u32 i = 0; bodies != nullptr && i < params.conditional.size; ++i) {
    names.push_back(worker.graphs.find_or_add(bodies[i]));
    if (!names.back()) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (bodies != nullptr) worker.conditional_bodies[made].assign(bodies, bodies + names.size());
  request.out->put_array(names.data(), names.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
