// Nodes that refer to something that only the client has: events, which a launch makes pending, and host
// functions.
#include "guest/runtime/manual/graph_place.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

// What the driver says a node's event is, as the program knows it.
CUresult get_event(wire::Function function, CUgraphNode node, CUevent* out) {
  if (node == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(function);
  call.put(bits(node));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto handle = call.get<wire::Handle>();
  Event* found = nullptr;
  g_events.each([&](Event& event) {
    if (event.handle == handle) found = &event;
  });
  if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;  // destroyed, while the node still means it
  *out = reinterpret_cast<CUevent>(found);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult add_event_node(const Place& place, bool record, CUevent handle) {
  const Event* event = find(handle);
  if (!place.valid() || event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(record ? wire::Function::cuGraphAddEventRecordNode : wire::Function::cuGraphAddEventWaitNode);
  place.put(call);
  call.put(event->handle);
  if (record) note_followed_node();
  return place.add(call);
}

namespace api {

CUresult cuGraphAddEventRecordNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                   size_t count, CUevent event) {
  return add_event_node({out, graph, dependencies, count}, true, event);
}

CUresult cuGraphAddEventWaitNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                 size_t count, CUevent event) {
  return add_event_node({out, graph, dependencies, count}, false, event);
}

CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent* event) {
  return get_event(wire::Function::cuGraphEventRecordNodeGetEvent, node, event);
}

CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode node, CUevent* event) {
  return get_event(wire::Function::cuGraphEventWaitNodeGetEvent, node, event);
}

CUresult cuGraphEventRecordNodeSetEvent(CUgraphNode node, CUevent handle) {
  const Event* event = find(handle);
  if (node == nullptr || event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphEventRecordNodeSetEvent);
  call.put(bits(node));
  call.put(event->handle);
  return call.wait();
}

CUresult cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent handle) {
  Event* event = find(handle);
  if (exec == nullptr || node == nullptr || event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphExecEventRecordNodeSetEvent);
  call.put(bits(exec));
  call.put(bits(node));
  call.put(event->handle);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS)
    change_exec(exec, [&](GraphContents& contents) {
      replace_entry(contents.records, EventRecord{bits(node), event, event->handle});
    });
  return result;
}

CUresult cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS* params) {
  if (node == nullptr || params == nullptr || params->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<HostCall> host_call = make_host_call(params->fn, params->userData);
  Call call(wire::Function::cuGraphHostNodeSetParams);
  call.put(bits(node));
  call.put(host_call->id);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) keep_for_node(bits(node), {host_call});
  return result;
}

CUresult cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                      const CUDA_HOST_NODE_PARAMS* params) {
  if (params == nullptr || params->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<HostCall> host_call = make_host_call(params->fn, params->userData);
  Call call(wire::Function::cuGraphExecHostNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  call.put(host_call->id);
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS)
    change_exec(exec, [&](GraphContents& contents) {
      replace_entry(contents.host_calls, HostNode{bits(node), host_call});
    });
  return result;
}

}  // namespace api
}  // namespace gpupool::guest
