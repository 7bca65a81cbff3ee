// What a hostile or broken client can send to the handlers of streams, captures and graphs: nothing unchecked
// reaches the driver, and handles never outlive what they name.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <vector>

#include "hostd/worker/dispatcher.hpp"
#include "tests/cpp/fake_graphs.hpp"
#include "wire/cpp/copy_message.hpp"
#include "wire/cpp/graph_message.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

using wire::Function;
using wire::Handle;
using wire::HandleKind;
using wire::ProtocolError;

class Session {
 public:
  Session() {
    g_fake = {};
    worker.window = {static_cast<u8*>(mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
                     wire::kWindowMinBytes};
    connect(worker.driver);
    worker.streams.put(stream, StreamEntry{.stream = reinterpret_cast<CUstream>(u64{0x5000})});
  }
  ~Session() { munmap(worker.window.base, worker.window.size); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  CUresult call(Function function, const wire::Writer& message, u16 flags = wire::kReply, Handle on = {}) {
    wire::Slot slot{};
    slot.function = static_cast<u16>(function);
    slot.flags = flags;
    slot.stream = on;
    REQUIRE(message.bytes().size() <= wire::kInlineBytes);
    slot.inline_size = static_cast<u32>(message.bytes().size());
    if (slot.inline_size != 0) std::memcpy(slot.payload, message.bytes().data(), slot.inline_size);
    dispatcher.execute(slot, ticket++);
    return static_cast<CUresult>(worker.window.reply(0).status);
  }
  Handle answer() {
    Handle handle;
    std::memcpy(&handle, worker.window.reply(0).payload, sizeof handle);
    return handle;
  }
  std::vector<u64> words(size_t count) {
    std::vector<u64> answered(count);
    std::memcpy(answered.data(), worker.window.reply(0).payload, count * sizeof(u64));
    return answered;
  }
  Handle graph() {
    REQUIRE(call(Function::cuGraphCreate, {}) == CUDA_SUCCESS);
    return answer();
  }
  // graph, dependencies, no edges: what every message that adds a node begins with.
  static wire::Writer place(Handle graph, const std::vector<Handle>& dependencies = {}) {
    wire::Writer message;
    message.put(graph);
    message.put_array(dependencies.data(), dependencies.size());
    message.put<u64>(0);
    return message;
  }
  u64 word() { return worker.window.word(stream.index()).value.load(); }

  Worker worker;
  Dispatcher dispatcher{worker};
  const Handle stream = Handle::make(HandleKind::stream, 1, 9);
  u64 ticket = 0;
};

wire::BoxCopy to_device(u64 offset, u64 bytes) {
  wire::BoxCopy box{};
  box.source.kind = wire::PlaceKind::piece;
  box.source.address = offset;
  box.source.pitch = bytes;
  box.destination.kind = wire::PlaceKind::device;
  box.destination.address = 0xd000;
  box.width_bytes = bytes;
  box.height = 1;
  box.depth = 1;
  return box;
}

}  // namespace

TEST_CASE("a graph's handles end with it, those inside its child graphs too") {
  Session session;
  const Handle graph = session.graph();
  REQUIRE(session.call(Function::cuGraphAddEmptyNode, Session::place(graph)) == CUDA_SUCCESS);
  const Handle node = session.answer();
  wire::Writer child = Session::place(graph, {node});
  child.put(session.graph());
  child.put(static_cast<u32>(CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE));
  REQUIRE(session.call(Function::cuGraphAddChildGraphNode, child) == CUDA_SUCCESS);
  const Handle child_node = session.answer();
  const CUgraph embedded = g_fake.children.begin()->second;
  const Handle inner_graph = session.worker.graphs.find_or_add(embedded);
  const Handle inner_node = session.worker.graph_nodes.find_or_add(*g_fake.graphs[embedded].begin());
  wire::Writer destroy;
  destroy.put(graph);
  CHECK(session.call(Function::cuGraphDestroy, destroy) == CUDA_SUCCESS);
  for (const Handle gone : {node, child_node, inner_node})
    CHECK(session.worker.graph_nodes.find(gone) == nullptr);
  for (const Handle gone : {graph, inner_graph}) CHECK(session.worker.graphs.find(gone) == nullptr);
  CHECK(session.call(Function::cuGraphDestroy, destroy) == CUDA_ERROR_INVALID_VALUE);
  CHECK(session.call(Function::cuGraphAddEmptyNode, Session::place(graph)) == CUDA_ERROR_INVALID_VALUE);
}

TEST_CASE("graphs inside a graph are told with their counterparts in a copy") {
  Session session;
  const Handle graph = session.graph();
  wire::Writer child = Session::place(graph);
  child.put(session.graph());
  child.put(static_cast<u32>(CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE));
  REQUIRE(session.call(Function::cuGraphAddChildGraphNode, child) == CUDA_SUCCESS);
  session.answer();
  const auto ask = [&](Handle about, Handle copy, u64 room) {
    wire::Writer asked;
    asked.put(about);
    asked.put(copy);
    asked.put(room);
    return session.call(Function::graph_inside, asked);
  };
  CHECK(ask(Handle{12345}, Handle{}, 64) == CUDA_ERROR_INVALID_VALUE);
  // The fake's counterpart of every node is the node itself, in this graph only.
  REQUIRE(ask(graph, graph, 64) == CUDA_SUCCESS);
  const auto inner = session.worker.graphs.name_of(g_fake.children.begin()->second);
  REQUIRE(inner);
  CHECK(session.words(4) == std::vector<u64>{1, 1, inner.bits, inner.bits});
  REQUIRE(ask(graph, session.graph(), 64) == CUDA_SUCCESS);
  CHECK(session.words(4) == std::vector<u64>{1, 1, inner.bits, 0});
  REQUIRE(ask(graph, Handle{}, 64) == CUDA_SUCCESS);
  CHECK(session.words(4) == std::vector<u64>{1, 1, inner.bits, 0});
  REQUIRE(ask(graph, Handle{}, 0) == CUDA_SUCCESS);
  CHECK(session.words(1) == std::vector<u64>{1});
}

TEST_CASE("the bodies of a condition end with its graph") {
  Session session;
  const Handle graph = session.graph();
  const auto conditional = [&](u32 type, u32 size) {
    wire::Writer message = Session::place(graph);
    message.put<u64>(0x77);  // the condition's handle, which only the driver knows
    message.put(type);
    message.put(size);
    message.put(0u);
    return message;
  };
  REQUIRE(session.call(Function::cuGraphAddNode, conditional(CU_GRAPH_COND_TYPE_WHILE, 1)) == CUDA_SUCCESS);
  const Handle node = session.answer();
  const CUgraph body = g_fake.conditionals.begin()->second;
  const Handle name = session.worker.graphs.name_of(body);
  REQUIRE(name);
  REQUIRE(session.call(Function::cuGraphAddEmptyNode, Session::place(name)) == CUDA_SUCCESS);
  const Handle inner = session.answer();
  for (const auto& [type, size] : {std::pair{0x100u, 1u}, std::pair{1u, (1u << 16) + 1}})
    CHECK_THROWS_AS(session.call(Function::cuGraphAddNode, conditional(type, size)), ProtocolError);
  wire::Writer asked;
  const Handle handles[] = {graph, node, name, inner, Handle{12345}};
  asked.put_array(handles, 5);
  CHECK(session.call(Function::graph_living, asked) == CUDA_SUCCESS);
  wire::Writer destroy;
  destroy.put(graph);
  CHECK(session.call(Function::cuGraphDestroy, destroy) == CUDA_SUCCESS);
  CHECK(session.worker.graphs.find(name) == nullptr);
  for (const Handle gone : {node, inner}) CHECK(session.worker.graph_nodes.find(gone) == nullptr);
  CHECK(session.worker.conditional_bodies.empty());
  g_fake.conditionals.clear();
}

TEST_CASE("dependencies must exist, and edges be as many") {
  Session session;
  const Handle graph = session.graph();
  const Handle invented = Handle::make(HandleKind::graph_node, 1, Handle::kWorkerAssigned | 3);
  CHECK(session.call(Function::cuGraphAddEmptyNode, Session::place(graph, {invented})) ==
        CUDA_ERROR_INVALID_VALUE);
  wire::Writer uneven;
  uneven.put(graph);
  uneven.put_array(&invented, 1);
  const CUgraphEdgeData edges[2] = {};
  uneven.put_array(edges, 2);
  CHECK_THROWS_AS(session.call(Function::cuGraphAddEmptyNode, uneven), ProtocolError);
  wire::Writer endless;
  endless.put(graph);
  endless.put<u64>(~0ull);
  CHECK_THROWS_AS(session.call(Function::cuGraphAddEmptyNode, endless), ProtocolError);
}

TEST_CASE("a memcpy node reaches no host memory but the window's data area") {
  Session session;
  const Handle graph = session.graph();
  const auto add = [&](const wire::BoxCopy& box) {
    wire::Writer message = Session::place(graph);
    message.put(box);
    return session.call(Function::cuGraphAddMemcpyNode, message);
  };
  CHECK(add(to_device(wire::kHeapOffset, 4096)) == CUDA_SUCCESS);
  CHECK(g_fake.copy.srcHost == session.worker.window.base + wire::kHeapOffset);
  CHECK_THROWS_AS(add(to_device(0, 64)), ProtocolError);  // the control page
  CHECK_THROWS_AS(add(to_device(wire::kWindowMinBytes - 64, 128)), ProtocolError);
  CHECK_THROWS_AS(add(to_device(~0ull - 8, 64)), ProtocolError);
  wire::BoxCopy rows = to_device(wire::kHeapOffset, 64);
  rows.height = 1ull << 40;
  CHECK_THROWS_AS(add(rows), ProtocolError);
  rows.source.pitch = 1ull << 62;
  CHECK_THROWS_AS(add(rows), ProtocolError);
  // No pitch and no height mean rows and slices without gaps.
  wire::BoxCopy tight = to_device(wire::kWindowMinBytes - 4096, 4096);
  tight.source.pitch = tight.source.height = 0;
  CHECK(add(tight) == CUDA_SUCCESS);
  tight.height = 2;
  CHECK_THROWS_AS(add(tight), ProtocolError);
  tight.height = 1;
  tight.depth = 2;
  CHECK_THROWS_AS(add(tight), ProtocolError);
  wire::BoxCopy odd = to_device(wire::kHeapOffset, 64);
  odd.source.kind = static_cast<wire::PlaceKind>(9);
  CHECK_THROWS_AS(add(odd), ProtocolError);
  CHECK(add(to_device(wire::kHeapOffset, 0)) == CUDA_ERROR_INVALID_VALUE);
}

TEST_CASE("a kernel node carries as many parameter bytes as its function takes") {
  Session session;
  const Handle graph = session.graph();
  const Handle function = Handle::make(HandleKind::function, 1, 1);
  FunctionEntry entry;
  entry.function = reinterpret_cast<CUfunction>(u64{0xf000});
  const auto add = [&](u64 bytes) {
    wire::Writer message = Session::place(graph);
    message.put(wire::GraphKernel{function, {1, 2, 3}, {4, 5, 6}, 7, 0});
    const std::vector<u8> parameters(bytes, 0xab);
    message.put_array(parameters.data(), parameters.size());
    return session.call(Function::cuGraphAddKernelNode_v2, message);
  };
  CHECK(add(12) == CUDA_ERROR_INVALID_VALUE);  // no such function
  session.worker.functions.put(function, entry);
  CHECK(add(12) == CUDA_ERROR_INVALID_VALUE);  // not described: its size is unknown
  session.worker.functions.find(function)->described = true;
  session.worker.functions.find(function)->parameter_bytes = 12;
  CHECK(add(8) == CUDA_ERROR_INVALID_VALUE);
  CHECK(add(16) == CUDA_ERROR_INVALID_VALUE);
  REQUIRE(add(12) == CUDA_SUCCESS);
  CHECK(g_fake.parameters == std::vector<u8>(12, 0xab));
  CHECK(g_fake.kernel.blockDimZ == 6);
}

TEST_CASE("a host node is given a function of ours, never an address from the client") {
  Session session;
  wire::Writer message = Session::place(session.graph());
  message.put<u32>(0xdead'beef);
  REQUIRE(session.call(Function::cuGraphAddHostNode, message) == CUDA_SUCCESS);
  CHECK(reinterpret_cast<u64>(g_fake.host.userData) == 0xdead'beef);
  CHECK(static_cast<bool>(g_fake.host.fn));
}

TEST_CASE("nothing of ours is issued into a capturing stream, and waiters are not left behind") {
  Session session;
  REQUIRE(session.call(Function::cuStreamBeginCapture_v2, {}, wire::kReply, session.stream) == CUDA_SUCCESS);
  session.call(Function::stream_mark, {}, wire::kMark, session.stream);
  CHECK(g_fake.marks == 0);
  CHECK(session.word() == session.ticket);
  wire::Writer keep;
  keep.put<u32>(0);
  REQUIRE(session.call(Function::cuStreamEndCapture, keep, wire::kReply, session.stream) == CUDA_SUCCESS);
  session.call(Function::stream_mark, {}, wire::kMark, session.stream);
  CHECK(g_fake.marks == 1);
  CHECK(session.word() == session.ticket);
}

TEST_CASE("handles given out during a capture that fails do not outlive it") {
  for (const bool discarded : {false, true}) {
    Session session;
    session.call(Function::cuStreamBeginCapture_v2, {}, wire::kReply, session.stream);
    wire::Writer ask;
    ask.put<u32>(0);
    ask.put<u64>(16);
    REQUIRE(session.call(Function::cuStreamGetCaptureInfo_v3, ask, wire::kReply, session.stream) ==
            CUDA_SUCCESS);
    const Handle graph = session.answer();
    const Handle node = session.worker.graph_nodes.name_of(*g_fake.graphs[g_fake.captured].begin());
    REQUIRE(session.worker.graph_nodes.find(node) != nullptr);
    g_fake.end_result = discarded ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    wire::Writer end;
    end.put<u32>(discarded);
    CHECK(session.call(Function::cuStreamEndCapture, end, wire::kReply, session.stream) == g_fake.end_result);
    CHECK(session.worker.graphs.find(graph) == nullptr);
    CHECK(session.worker.graph_nodes.find(node) == nullptr);
    CHECK(g_fake.graphs.empty());
  }
}

// The fuzzer's finding: a capture into the client's own graph destroyed it when it was discarded, and its
// handle stayed.
TEST_CASE("a graph that is captured into outlives the capture, and is not destroyed during it") {
  for (const bool discarded : {false, true}) {
    Session session;
    const Handle graph = session.graph();
    wire::Writer begin = Session::place(graph);
    REQUIRE(session.call(Function::cuStreamBeginCaptureToGraph, begin, wire::kReply, session.stream) ==
            CUDA_SUCCESS);
    wire::Writer destroy;
    destroy.put(graph);
    CHECK(session.call(Function::cuGraphDestroy, destroy) == CUDA_ERROR_INVALID_VALUE);
    wire::Writer end;
    end.put<u32>(discarded);
    CHECK(session.call(Function::cuStreamEndCapture, end, wire::kReply, session.stream) == CUDA_SUCCESS);
    if (!discarded) CHECK(session.answer() == graph);
    REQUIRE(session.worker.graphs.find(graph) != nullptr);
    CHECK(g_fake.graphs.contains(*session.worker.graphs.find(graph)));
    CHECK(session.call(Function::cuGraphDestroy, destroy) == CUDA_SUCCESS);
    CHECK(g_fake.graphs.empty());
  }
}

TEST_CASE("a stream that goes takes the graph that was being captured with it") {
  Session session;
  session.call(Function::cuStreamBeginCapture_v2, {}, wire::kReply, session.stream);
  wire::Writer ask;
  ask.put<u32>(0);
  ask.put<u64>(16);
  REQUIRE(session.call(Function::cuStreamGetCaptureInfo_v3, ask, wire::kReply, session.stream) ==
          CUDA_SUCCESS);
  const Handle graph = session.answer();
  REQUIRE(session.worker.graphs.find(graph) != nullptr);
  session.call(Function::cuStreamDestroy_v2, {}, wire::kMark, session.stream);
  CHECK(session.worker.graphs.find(graph) == nullptr);
  CHECK(g_fake.graphs.empty());
}

TEST_CASE("a destroyed stream's last word comes, and its place can be taken again") {
  Session session;
  session.call(Function::cuStreamDestroy_v2, {}, wire::kMark, session.stream);
  CHECK(g_fake.destroyed_streams == 1);
  CHECK(session.word() == session.ticket);
  session.call(Function::stream_mark, {}, wire::kMark, session.stream);
  CHECK(g_fake.marks == 1);                 // not for a stream that is gone
  CHECK(session.word() == session.ticket);  // but nobody waits for ever
  wire::Writer again;
  again.put(Handle::make(HandleKind::stream, 2, session.stream.index()));
  again.put<u32>(0);
  again.put<i32>(0);
  CHECK(session.call(Function::cuStreamCreateWithPriority, again) == CUDA_SUCCESS);
  CHECK_THROWS_AS(session.call(Function::cuStreamCreateWithPriority, again), ProtocolError);
  wire::Writer beyond;
  beyond.put(Handle::make(HandleKind::stream, 1, wire::kWords));
  beyond.put<u32>(0);
  beyond.put<i32>(0);
  CHECK_THROWS_AS(session.call(Function::cuStreamCreateWithPriority, beyond), ProtocolError);
}

TEST_CASE("attributes that would carry handles are refused") {
  Session session;
  wire::Writer message;
  message.put<u32>(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT);
  message.put(CUstreamAttrValue{});
  CHECK(session.call(Function::cuStreamSetAttribute, message, wire::kReply, session.stream) ==
        CUDA_ERROR_INVALID_VALUE);
}

}  // namespace gpupool::worker
