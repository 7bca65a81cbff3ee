// What a context takes along when it ends, besides what the client ends itself (modules, memory, events,
// streams: guest/runtime/manual/context_end.cpp).
#include "hostd/worker/manual/context.hpp"
#include "hostd/worker/manual/graphics_resource.hpp"
#include "hostd/worker/manual/texture.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

void empty_context(Worker& worker, u32 owner) {
  const DriverApi& driver = worker.driver;
  // Users before what they use.
  worker.graph_execs.take_owned(owner,
                                [&](wire::Handle, CUgraphExec exec) { driver.cuGraphExecDestroy(exec); });
  destroy_textures(worker, owner);
  drop_graphics_resources(worker, owner);
  worker.arrays.take_owned(owner, [&](wire::Handle handle, CUarray array) {
    // Those that the driver named are levels and planes of others.
    if ((handle.index() & wire::Handle::kWorkerAssigned) == 0) driver.cuArrayDestroy(array);
  });
  worker.mipmapped_arrays.take_owned(
      owner, [&](wire::Handle, CUmipmappedArray array) { driver.cuMipmappedArrayDestroy(array); });
  worker.link_states.take_owned(owner, [](wire::Handle, const std::shared_ptr<LinkEntry>&) {});
}

// No arguments: empties the slot's context, a primary one that stays in the worker.
CUresult handle_context_empty(Worker& worker, Request& request) {
  request.in.finish();
  if (request.context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  empty_context(worker, request.context_index);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
