// Graphs and executable graphs as wholes: making, copying, instantiating, launching, destroying. Nodes are in
// graph_node.cpp and graph_params.cpp.
#include "guest/runtime/manual/graph.hpp"

#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/event.hpp"
#include "guest/runtime/manual/graph_host_copy.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest::api {
namespace {

struct InstantiateResult {
  CUgraphExec exec = nullptr;
  CUgraphNode error_node = nullptr;
  CUgraphInstantiateResult detail = CUDA_GRAPH_INSTANTIATE_SUCCESS;
};

CUresult instantiate(CUgraph graph, u64 flags, Stream* upload, InstantiateResult& out) {
  if (const CUresult unsafe = check_unsafe_call(); unsafe != CUDA_SUCCESS) return unsafe;
  Call call(wire::Function::cuGraphInstantiateWithParams);
  call.put(bits(graph));
  call.put(flags);
  call.put(upload == nullptr ? wire::Handle{} : upload->handle);
  const CUresult result = call.wait();
  const auto exec = call.get<u64>();
  out.error_node = reinterpret_cast<CUgraphNode>(call.get<u64>());
  out.detail = static_cast<CUgraphInstantiateResult>(call.get<u32>());
  if (result != CUDA_SUCCESS) return result;
  out.exec = reinterpret_cast<CUgraphExec>(exec);
  GraphContents contents;
  if (const CUresult failed = read_contents(bits(graph), contents); failed != CUDA_SUCCESS) return failed;
  remember_exec(exec, bits(graph), flags, std::move(contents));
  return CUDA_SUCCESS;
}

// After a launch that something of the client's hangs on: events, callbacks, lives.
void follow_launch(const Stream& stream, u64 value, const std::shared_ptr<GraphContents>& contents) {
  for (const EventRecord& record : contents->records)
    if (Event* event = record.live()) set_recorded(*event, stream.handle.index(), value);
  // The thread that runs host functions serves them until then, and `contents` keeps them.
  if (!contents->host_calls.empty() || !contents->objects.empty() || !contents->copies.empty())
    run_when(stream.handle.index(), value, [contents] {});
}

// `value` is what the stream's word reaches after the launch, if something follows it. A launch that may find
// no memory is waited for: the program must learn it from this call.
CUresult launch(CUgraphExec handle, const ExecContents& exec, Stream& stream,
                const std::shared_ptr<GraphContents>& contents, u64& value) {
  Call call(wire::Function::cuGraphLaunch);
  call.on(stream);
  call.put(bits(handle));
  const bool followed = !contents->empty();
  if (followed) call.mark();
  const CUresult result = exec.allocates ? call.wait() : call.send();
  value = call.ticket() + 1;
  if (result == CUDA_SUCCESS && followed) follow_launch(stream, value, contents);
  return result;
}

// The pieces belong to the executable graph: its launch before this one must be through with them.
CUresult launch_with_pieces(CUgraphExec handle, ExecContents& exec, Stream& stream,
                            const std::shared_ptr<GraphContents>& contents) {
  const std::lock_guard lock(exec.launching);
  if (exec.word != 0)
    if (const CUresult result = Session::current()->wait_word(exec.word, exec.value); result != CUDA_SUCCESS)
      return result;
  if (const CUresult result = fill_graph_pieces(*contents, stream); result != CUDA_SUCCESS) return result;
  u64 value = 0;
  if (const CUresult result = launch(handle, exec, stream, contents, value); result != CUDA_SUCCESS)
    return result;
  exec.word = stream.handle.index();
  exec.value = value;
  return empty_graph_pieces(*contents, stream);
}

}  // namespace

CUresult cuGraphCreate(CUgraph* out, unsigned int flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphCreate);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto graph = call.get<u64>();
  remember_graph(graph, {});
  *out = reinterpret_cast<CUgraph>(graph);
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
  if (!forget_graph(bits(graph))) return CUDA_ERROR_INVALID_VALUE;
  forget_accepted(bits(graph));
  g_graph_changes.fetch_add(1, std::memory_order_release);
  Call call(wire::Function::cuGraphDestroy);
  call.put(bits(graph));
  const CUresult result = call.send();
  drop_objects();
  return result;
}

CUresult cuGraphClone(CUgraph* out, CUgraph original) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphClone);
  call.put(bits(original));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto graph = call.get<u64>();
  GraphContents contents;
  if (const CUresult result = read_followed(graph, contents); result != CUDA_SUCCESS) return result;
  remember_graph(graph, {});
  keep_for_graph(graph, contents);
  if (const CUresult result = copy_objects(bits(original), graph); result != CUDA_SUCCESS) return result;
  *out = reinterpret_cast<CUgraph>(graph);
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  // An upload needs a stream: cuGraphInstantiateWithParams names one.
  if (out == nullptr || (flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0) return CUDA_ERROR_INVALID_VALUE;
  InstantiateResult made;
  const CUresult result = instantiate(graph, flags, nullptr, made);
  if (result == CUDA_SUCCESS) *out = made.exec;
  return result;
}

CUresult cuGraphInstantiate_v2(CUgraphExec* out, CUgraph graph, CUgraphNode* error_node, char* log,
                               size_t log_bytes) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  InstantiateResult made;
  const CUresult result = instantiate(graph, 0, nullptr, made);
  if (result == CUDA_SUCCESS) *out = made.exec;
  if (result != CUDA_SUCCESS && error_node != nullptr) *error_node = made.error_node;
  if (log != nullptr && log_bytes != 0) log[0] = '\0';  // the driver's text does not travel
  return result;
}

CUresult cuGraphInstantiate(CUgraphExec* out, CUgraph graph, CUgraphNode* error_node, char* log,
                            size_t log_bytes) {
  return api::cuGraphInstantiate_v2(out, graph, error_node, log, log_bytes);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  if (out == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Stream* upload = nullptr;
  if ((params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0) {
    CUresult error = CUDA_SUCCESS;
    upload = resolve_stream(params->hUploadStream, error);
    if (upload == nullptr) return error;
  }
  InstantiateResult made;
  const CUresult result = instantiate(graph, params->flags, upload, made);
  params->hErrNode_out = made.error_node;
  params->result_out = made.detail;
  if (result == CUDA_SUCCESS) *out = made.exec;
  return result;
}

CUresult cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t* flags) {
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr || flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  // cuda.h: the upload flag is not kept.
  *flags = exec->flags & ~static_cast<u64>(CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD);
  return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
  // Contents of launches still in flight are held by the host thread's waiters.
  if (take_exec(bits(handle)) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphExecDestroy);
  call.put(bits(handle));
  return call.send();
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(stream_handle, error);
  if (stream == nullptr) return error;
  if (const CUresult result = check_legacy(*stream); result != CUDA_SUCCESS) return result;
  // A launch does not become part of a graph (measured on driver 580).
  if (const CUresult result = refuse_capturing(*stream); result != CUDA_SUCCESS) return result;
  std::shared_ptr<GraphContents> contents;
  {
    const std::lock_guard lock(exec->mutex);
    contents = exec->contents;
  }
  if (!contents->copies.empty()) return launch_with_pieces(handle, *exec, *stream, contents);
  u64 value = 0;
  return launch(handle, *exec, *stream, contents, value);
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(stream_handle, error);
  if (stream == nullptr) return error;
  if (const CUresult result = refuse_capturing(*stream); result != CUDA_SUCCESS) return result;
  Call call(wire::Function::cuGraphUpload);
  call.on(*stream);
  call.put(bits(handle));
  return exec->allocates ? call.wait() : call.send();
}

CUresult cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph, CUgraphExecUpdateResultInfo* info) {
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr || info == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphExecUpdate_v2);
  call.put(bits(handle));
  call.put(bits(graph));
  const CUresult result = call.wait();
  info->result = static_cast<CUgraphExecUpdateResult>(call.get<u32>());
  info->errorNode = reinterpret_cast<CUgraphNode>(call.get<u64>());
  info->errorFromNode = reinterpret_cast<CUgraphNode>(call.get<u64>());
  if (result != CUDA_SUCCESS) return result;
  auto contents = std::make_shared<GraphContents>();
  if (const CUresult failed = read_contents(bits(graph), *contents); failed != CUDA_SUCCESS) return failed;
  // User objects are now those of the graph; the old ones go when no launch needs them any more (cuda-core
  // 1.2.0 relies on both: GRAPH_ATTACHMENTS.md). After the lock: destructors of the program may run.
  const std::lock_guard lock(exec->mutex);
  exec->contents.swap(contents);
  exec->accepted.clear();
  exec->accepted_children.clear();
  return CUDA_SUCCESS;
}

CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode* error_node,
                           CUgraphExecUpdateResult* update) {
  if (update == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUgraphExecUpdateResultInfo info{};
  const CUresult result = api::cuGraphExecUpdate_v2(exec, graph, &info);
  *update = info.result;
  if (error_node != nullptr) *error_node = info.errorNode;
  return result;
}

}  // namespace gpupool::guest::api
