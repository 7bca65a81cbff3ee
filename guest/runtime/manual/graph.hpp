// What the client itself must remember of graphs. A CUgraph, CUgraphExec or CUgraphNode that the program
// holds is the wire handle, cast; the driver's object lives in the worker. Here are the things that only the
// client has: callbacks, events that a launch records, user objects to destroy with the graph.
//
// Invariant: whatever a graph or an executable graph refers to here stays alive until that graph is destroyed
// and its last launch has completed.
#pragma once

#include <cuda.h>

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "guest/runtime/manual/host_function.hpp"
#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

struct UserObject;

// An event that a graph's event record node records. The event may be destroyed before the graph.
struct EventRecord {
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

struct GraphContents {
  std::vector<std::shared_ptr<HostCall>> host_calls;
  std::vector<EventRecord> records;
  std::vector<UserReference> objects;
  [[nodiscard]] bool empty() const { return host_calls.empty() && records.empty() && objects.empty(); }
  void merge(const GraphContents& other);
};

// An executable graph: a copy of the contents of the graph it was made from, and where it was launched.
struct ExecContents {
  std::mutex mutex;
  std::shared_ptr<GraphContents> contents =
      std::make_shared<GraphContents>();  // replaced by updates, never changed
  u64 flags = 0;
};

// The registry. A graph that is not in it was never given to this program, or is destroyed.
void remember_graph(u64 graph, const GraphContents& contents);
bool forget_graph(u64 graph);
// Calls `change` with the contents of the graph under the registry's lock. False when there is no such graph.
bool with_graph(u64 graph, const std::function<void(GraphContents&)>& change);
GraphContents contents_of(u64 graph);
void remember_exec(u64 exec, u64 flags, GraphContents contents);
std::shared_ptr<ExecContents> find_exec(u64 exec);
std::shared_ptr<ExecContents> take_exec(u64 exec);

template <typename T>
u64 bits(T handle) {
  return reinterpret_cast<u64>(handle);
}

// Nodes in one message, at most (the worker's limit too).
inline constexpr u64 kNodeListLimit = 1u << 20;

}  // namespace gpupool::guest
