// What the client itself must remember of graphs. A CUgraph, CUgraphExec or CUgraphNode that the program
// holds is the wire handle, cast; the driver's object lives in the worker. Here are the things that only the
// client has: callbacks, events that a launch records, user objects to destroy with the graph.
//
// Invariant: whatever a graph or an executable graph refers to here stays alive until that graph is destroyed
// and its last launch has completed.
#pragma once

#include <cuda.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "guest/runtime/manual/host_function.hpp"
#include "guest/runtime/objects.hpp"
#include "wire/cpp/graph_message.hpp"
#include "wire_functions.hpp"  // generated

namespace gpupool::guest {

struct UserObject;
struct GraphPiece;

// An event that an executable graph's event record node records. The event may be destroyed before the graph.
struct EventRecord {
  u64 node = 0;
  Event* event = nullptr;
  wire::Handle handle;
  // The event, if it still is the one that was meant.
  [[nodiscard]] Event* live() const {
    Event* found = g_events.find(event);
    return found != nullptr && found->handle == handle ? found : nullptr;
  }
};

// References of one graph to one user object; gives them back when it ends.
class UserReference {
 public:
  UserReference(UserObject* object, u32 count) : object_(object), count_(count) {}
  UserReference(const UserReference& other);
  UserReference(UserReference&& other) noexcept
      : object_(other.object_), count_(std::exchange(other.count_, 0)) {}
  UserReference& operator=(UserReference&& other) noexcept {
    std::swap(object_, other.object_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~UserReference();
  [[nodiscard]] UserObject* object() const { return object_; }
  [[nodiscard]] u32 count() const { return count_; }
  void add(u32 count) { count_ += count; }
  // Hands `count` references to the caller, who releases them. False when there are fewer.
  bool drop(u32 count);

 private:
  UserObject* object_;
  u32 count_;
};

// A host function in a graph. `node` is 0 where the client has not been told it: in a capture.
struct HostNode {
  u64 node = 0;
  std::shared_ptr<HostCall> call;
};

// Of a graph: what must stay alive with it. Of an executable graph: exactly what its launches run and record,
// as the worker said when it was instantiated.
// A copy with memory of this process alone (graph_host_copy.hpp).
struct HostCopy {
  u64 node = 0;
  std::shared_ptr<GraphPiece> piece;
};

struct GraphContents {
  std::vector<std::shared_ptr<void>> kept;  // of graphs only: host functions, pieces of the window
  std::vector<HostNode> host_calls;         // of executable graphs only, as all below but the objects
  std::vector<HostCopy> copies;
  std::vector<EventRecord> records;
  std::vector<UserReference> objects;
  [[nodiscard]] bool empty() const {
    return host_calls.empty() && copies.empty() && records.empty() && objects.empty();
  }
  void merge(const GraphContents& other);
};

// What the driver judges an update of a kernel node by: everything but the values of its parameters.
struct KernelShape {
  wire::GraphKernel kernel{};
  u64 function_epoch = 0;  // attributes of the function may have changed, the memory it may have among them
  const Context* context = nullptr;
};

// An executable graph: a copy of the contents of the graph it was made from, and where it was launched.
struct ExecContents {
  std::mutex mutex;
  std::shared_ptr<GraphContents> contents =
      std::make_shared<GraphContents>();  // replaced by updates, never changed
  const Context* context = nullptr;       // it ends with it
  u64 flags = 0;
  bool allocates = false;  // perhaps: its launches may find no memory
  std::atomic<u64> source{
      0};  // the graph that it was made from, whose nodes name its own; 0 once that is gone
  // Of kernel nodes, by node: what the driver has accepted in an update. Another one of the same shape cannot
  // fail, so it need not be waited for. Programs that update each node before each launch do nothing else.
  std::unordered_map<u64, KernelShape> accepted;
  // Of child graph nodes, by node: the graphs of nothing but kernels that the driver has accepted, as long as
  // no graph has changed since (g_graph_changes).
  std::unordered_map<u64, std::vector<u64>> accepted_children;
  u64 children_as_of = 0;
  // For launches that fill and empty pieces: those are the graph's, not the launch's.
  std::mutex launching;
  u32 word = 0;  // of the newest such launch's stream
  u64 value = 0;
};

// Counts the calls that may have changed a graph of this program's, or what a kernel in it may have.
inline std::atomic<u64> g_graph_changes{0};

// Called after each call that was waited for.
void note_graph_change(wire::Function function);

// A graph of this program has a node that allocates.
inline std::atomic<bool> g_graphs_allocate{false};

// The registry. A graph that is not in it was never given to this program, or is destroyed.
void remember_graph(u64 graph, const GraphContents& contents);
bool forget_graph(u64 graph);
// Calls `change` with the contents of the graph under the registry's lock. False when there is no such graph.
bool with_graph(u64 graph, const std::function<void(GraphContents&)>& change);
// The same for a graph's references to user objects, also of one that is not in the registry because it is
// inside another graph or still being captured: those are kept until the worker says that it is gone.
bool with_objects(u64 graph, const std::function<void(std::vector<UserReference>&)>& change);
// Releases the objects of graphs inside others that are gone. After whatever ends such graphs; a look at one
// number unless there are any.
void drop_objects();
// What an executable graph made from this one refers to; asks the worker, which knows where
// host functions and events are now, if there are any at all.
CUresult read_contents(u64 graph, GraphContents& out);
// The same without user objects.
CUresult read_followed(u64 graph, GraphContents& out);
// Whether the graph, or one inside it, may have user objects. No question to the worker.
bool may_have_objects(u64 graph);
// Gives a graph that the driver has just made as a copy, and those inside it, references to the user objects
// of the originals. They belong to the graphs inside, not to the one around them: a program may ask any of
// those to release them.
CUresult copy_objects(u64 graph, u64 copy);
// The graph has become a part of another. It keeps its user objects.
void move_objects_inside(u64 graph);
// From now on read_contents() asks: called for each node with an event, a host function, memory of this
// process.
void note_followed_node();
// Keeps something for a graph. A graph inside another, which is not in the registry, keeps it until the
// worker says that it is gone.
void keep_for_graph(u64 graph, const std::shared_ptr<void>& thing);
// ... and what read_followed() has said of another graph, which is now a part of this one.
void keep_for_graph(u64 graph, const GraphContents& of);
// Keeps something for the graph that the stream is captured into. False when the capture is over.
bool keep_for_capture(Stream& stream, const std::shared_ptr<void>& thing);
// Keeps what a node has been given, in place of what it had been given before.
void keep_for_node(u64 node, std::vector<std::shared_ptr<void>> things);

// Memory behind the pointers that functions like cuGraphKernelNodeGetParams answer; as old as the node at
// most.
struct NodeStorage {
  std::vector<u64> words;  // as u64, for the alignment of the parameters
  std::vector<void*> pointers;
};
std::shared_ptr<NodeStorage> node_storage(CUgraphNode node);

void remember_exec(u64 exec, u64 source, u64 flags, GraphContents contents);
std::shared_ptr<ExecContents> find_exec(u64 exec);
std::shared_ptr<ExecContents> take_exec(u64 exec);
// The graph, or with 0 a node of any graph, is gone: updates of its nodes are waited for, so that they fail
// as they must.
void forget_accepted(u64 graph);
// Replaces what an executable graph refers to by a copy with `change` applied: launches in flight keep
// theirs.
void change_exec(CUgraphExec handle, const std::function<void(GraphContents&)>& change);

// Gives an entry of an executable graph to its node alone.
template <typename Entry>
void replace_entry(std::vector<Entry>& entries, Entry entry) {
  std::erase_if(entries, [&](const Entry& old) { return old.node == entry.node; });
  entries.push_back(std::move(entry));
}

template <typename T>
u64 bits(T handle) {
  return reinterpret_cast<u64>(handle);
}

// Nodes in one message, at most (the worker's limit too).
inline constexpr u64 kNodeListLimit = 1u << 20;

}  // namespace gpupool::guest
