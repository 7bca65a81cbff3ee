// Nodes with host functions or events, and telling the client which of them a graph has.
#include "hostd/worker/manual/graph.hpp"
#include "hostd/worker/manual/graph_params.hpp"
#include "hostd/worker/manual/host_function.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// Handles of events by what the driver calls them.
std::unordered_map<CUevent, wire::Handle> event_names(Worker& worker) {
  std::unordered_map<CUevent, wire::Handle> names;
  worker.events.each([&](wire::Handle handle, const EventEntry& entry) { names[entry.event] = handle; });
  return names;
}

// Walks a graph and those inside it.
class Followed {
 public:
  explicit Followed(Worker& worker) : worker_(worker), events_(event_names(worker)) {}
  CUresult walk(CUgraph graph);
  std::vector<wire::FollowedNode> nodes;

 private:
  CUresult look_at(CUgraphNode node);
  CUresult add(CUgraphNode node, u64 value, wire::FollowedKind kind);
  CUresult look_at_copy(CUgraphNode node);

  Worker& worker_;
  std::unordered_map<CUevent, wire::Handle> events_;
};

CUresult Followed::walk(CUgraph graph) {
  std::vector<CUgraphNode> found;
  CUresult result = nodes_of(worker_, graph, found);
  for (size_t i = 0; result == CUDA_SUCCESS && i < found.size(); ++i) result = look_at(found[i]);
  return result;
}

CUresult Followed::look_at(CUgraphNode node) {
  CUgraphNodeType type{};
  CUresult result = worker_.driver.cuGraphNodeGetType(node, &type);
  if (result != CUDA_SUCCESS) return result;
  if (type == CU_GRAPH_NODE_TYPE_HOST) {
    CUDA_HOST_NODE_PARAMS params{};
    result = worker_.driver.cuGraphHostNodeGetParams(node, &params);
    if (result != CUDA_SUCCESS || params.fn != client_function(worker_)) return result;
    return add(node, client_id(params.userData), wire::FollowedKind::host_function);
  }
  if (type == CU_GRAPH_NODE_TYPE_EVENT_RECORD) {
    CUevent event = nullptr;
    result = worker_.driver.cuGraphEventRecordNodeGetEvent(node, &event);
    const auto name = events_.find(event);
    if (result != CUDA_SUCCESS || name == events_.end()) return result;
    return add(node, name->second.bits, wire::FollowedKind::event);
  }
  if (type == CU_GRAPH_NODE_TYPE_MEMCPY) return look_at_copy(node);
  for (const CUgraph inner : graphs_inside(worker_, node))
    if (result = walk(inner); result != CUDA_SUCCESS) return result;
  return CUDA_SUCCESS;
}

// The driver may name pinned memory as host memory or as unified memory.
CUresult Followed::look_at_copy(CUgraphNode node) {
  CUDA_MEMCPY3D params{};
  CUresult result = worker_.driver.cuGraphMemcpyNodeGetParams(node, &params);
  if (result != CUDA_SUCCESS) return result;
  const u64 sides[] = {
      params.srcMemoryType == CU_MEMORYTYPE_HOST ? reinterpret_cast<u64>(params.srcHost) : params.srcDevice,
      params.dstMemoryType == CU_MEMORYTYPE_HOST ? reinterpret_cast<u64>(params.dstHost) : params.dstDevice};
  const auto base = reinterpret_cast<u64>(worker_.window.base);
  for (const u64 address : sides)
    if (address >= base && address - base < worker_.window.size)
      if (result = add(node, address - base, wire::FollowedKind::window); result != CUDA_SUCCESS)
        return result;
  return CUDA_SUCCESS;
}

CUresult Followed::add(CUgraphNode node, u64 value, wire::FollowedKind kind) {
  const wire::Handle name = worker_.graph_nodes.find_or_add(node);
  if (!name || nodes.size() >= kMaxNodes) return CUDA_ERROR_OUT_OF_MEMORY;
  nodes.push_back({name.bits, value, kind, 0});
  return CUDA_SUCCESS;
}

// node -> event handle, null when the event is gone.
template <typename Ask>
CUresult answer_event(Worker& worker, Request& request, Ask ask) {
  const CUgraphNode* node = worker.graph_nodes.find(request.in.get<wire::Handle>());
  if (node == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUevent event = nullptr;
  if (const CUresult result = ask(*node, &event); result != CUDA_SUCCESS) return result;
  const std::unordered_map<CUevent, wire::Handle> names = event_names(worker);
  const auto name = names.find(event);
  request.out->put(name == names.end() ? wire::Handle{} : name->second);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult handle_cuGraphEventRecordNodeGetEvent(Worker& worker, Request& request) {
  return answer_event(worker, request, worker.driver.cuGraphEventRecordNodeGetEvent);
}

CUresult handle_cuGraphEventWaitNodeGetEvent(Worker& worker, Request& request) {
  return answer_event(worker, request, worker.driver.cuGraphEventWaitNodeGetEvent);
}

// graph, u64 room -> u64 count, and if that is no more than the room FollowedNode[].
CUresult handle_graph_followed(Worker& worker, Request& request) {
  const CUgraph* graph = worker.graphs.find(request.in.get<wire::Handle>());
  const auto room = request.in.get<u64>();
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Followed followed(worker);
  if (const CUresult result = followed.walk(*graph); result != CUDA_SUCCESS) return result;
  request.out->put<u64>(followed.nodes.size());
  if (followed.nodes.size() <= room) request.out->put_array(followed.nodes.data(), followed.nodes.size());
  return CUDA_SUCCESS;
}

// Handle[] -> u8[]: 1 for those that name a graph or a node.
CUresult handle_graph_living(Worker& worker, Request& request) {
  const auto handles = request.in.get_array<wire::Handle>(kMaxNodes);
  std::vector<u8> living;
  living.reserve(handles.size());
  for (const wire::Handle handle : handles)
    living.push_back(worker.graphs.find(handle) != nullptr || worker.graph_nodes.find(handle) != nullptr);
  request.out->put_array(living.data(), living.size());
  return CUDA_SUCCESS;
}

// node -> u32 id of the client's host function.
CUresult handle_cuGraphHostNodeGetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  CUDA_HOST_NODE_PARAMS params{};
  const CUresult result = worker.driver.cuGraphHostNodeGetParams(of.node, &params);
  if (result != CUDA_SUCCESS) return result;
  request.out->put(params.fn == client_function(worker) ? client_id(params.userData) : 0u);
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphExecHostNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, true); result != CUDA_SUCCESS) return result;
  const CUDA_HOST_NODE_PARAMS params{client_function(worker), client_argument(request.in.get<u32>())};
  return worker.driver.cuGraphExecHostNodeSetParams(of.exec, of.node, &params);
}

CUresult handle_cuGraphHostNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  const CUDA_HOST_NODE_PARAMS params{client_function(worker), client_argument(request.in.get<u32>())};
  return worker.driver.cuGraphHostNodeSetParams(of.node, &params);
}

}  // namespace gpupool::worker
