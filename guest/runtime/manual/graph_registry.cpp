// What the client keeps for graphs, executable graphs and nodes. See graph.hpp.
#include <cstring>
#include <unordered_map>

#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_host_copy.hpp"
#include "guest/runtime/message.hpp"
#include "wire/cpp/graph_message.hpp"

namespace gpupool::guest {
namespace {

// What is kept for a node, or for a graph inside another one. Such things end with the graph that holds them,
// which only the worker knows; so it is asked from time to time which of them are left.
struct Held {
  std::vector<std::shared_ptr<void>> things;
  std::vector<UserReference> objects;
  std::shared_ptr<NodeStorage> storage;
};

constexpr size_t kFirstSweep = 256;

struct Registry {
  std::mutex mutex;
  std::unordered_map<u64, GraphContents> graphs;
  std::unordered_map<u64, std::shared_ptr<ExecContents>> execs;
  std::unordered_map<u64, Held> held;
  size_t sweep_at = kFirstSweep;  // so many things held that asking is worth while
  std::atomic<bool> followed{false};
  std::atomic<u32> inner{0};  // graphs inside others that hold user objects
};

// Leaked on purpose: graphs are destroyed by exit handlers of programs too.
Registry& registry() {
  static auto& instance = *new Registry();
  return instance;
}

// One byte a handle of a graph or node: whether the worker still has it. Empty when the session has failed:
// nothing is asked of it any more.
std::vector<u8> ask_living(const std::vector<u64>& handles) {
  Call call(wire::Function::graph_living);
  call.put_array(handles.data(), handles.size());
  call.expect_answer(handles.size() + 64);
  if (call.wait() != CUDA_SUCCESS) return {};
  std::vector<u8> living(handles.size(), 1);
  call.get_array(living.data(), living.size());
  return living;
}

// What the worker answers as a count and, if there was room, so many elements.
template <typename Element>
CUresult ask_list(wire::Function function, std::initializer_list<u64> about, std::vector<Element>& out) {
  for (u64 room = 64;;) {
    Call call(function);
    for (const u64 each : about) call.put(each);
    call.put(room);
    call.expect_answer(room * sizeof(Element) + 64);
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    const auto count = call.get<u64>();
    if (count > kNodeListLimit) return CUDA_ERROR_OUT_OF_MEMORY;
    if (count > room) {
      room = count;
      continue;
    }
    out.resize(count);
    call.get_array(out.data(), out.size());
    return CUDA_SUCCESS;
  }
}

// Drops what is held for handles that are gone. Without the registry's lock held.
void sweep(bool at_once = false) {
  Registry& all = registry();
  std::vector<u64> handles;
  {
    const std::lock_guard lock(all.mutex);
    if (!at_once && all.held.size() < all.sweep_at) return;
    for (const auto& [handle, held] : all.held) handles.push_back(handle);
  }
  const std::vector<u8> living = ask_living(handles);
  if (living.empty()) return;
  std::vector<Held> dropped;  // destroyed after the lock is gone
  const std::lock_guard lock(all.mutex);
  for (size_t i = 0; i < handles.size(); ++i) {
    if (living[i] != 0) continue;
    auto removed = all.held.extract(handles[i]);
    if (removed.empty()) continue;
    if (!removed.mapped().objects.empty()) all.inner.fetch_sub(1, std::memory_order_relaxed);
    dropped.push_back(std::move(removed.mapped()));
  }
  all.sweep_at = all.held.size() * 2 > kFirstSweep ? all.held.size() * 2 : kFirstSweep;
}

// The references that a graph itself has, as references of the caller's.
void copy_references(u64 graph, std::vector<UserReference>& out) {
  const std::lock_guard lock(registry().mutex);
  const std::vector<UserReference>* from = nullptr;
  if (const auto own = registry().graphs.find(graph); own != registry().graphs.end())
    from = &own->second.objects;
  else if (const auto held = registry().held.find(graph); held != registry().held.end())
    from = &held->second.objects;
  if (from == nullptr) return;
  for (const UserReference& each : *from) out.push_back(each);
}

// Gives a graph, which may be inside another, references to keep.
void add_references(u64 graph, std::vector<UserReference> objects) {
  if (objects.empty()) return;
  const std::lock_guard lock(registry().mutex);
  std::vector<UserReference>* to = nullptr;
  if (const auto own = registry().graphs.find(graph); own != registry().graphs.end())
    to = &own->second.objects;
  else
    to = &registry().held[graph].objects;
  if (to->empty() && registry().graphs.count(graph) == 0)
    registry().inner.fetch_add(1, std::memory_order_relaxed);
  for (UserReference& each : objects) to->push_back(std::move(each));
}

Event* event_of(u64 handle) {
  Event* found = nullptr;
  g_events.each([&](Event& event) {
    if (event.handle.bits == handle) found = &event;
  });
  return found;
}

}  // namespace

void GraphContents::merge(const GraphContents& other) {
  kept.insert(kept.end(), other.kept.begin(), other.kept.end());
  host_calls.insert(host_calls.end(), other.host_calls.begin(), other.host_calls.end());
  copies.insert(copies.end(), other.copies.begin(), other.copies.end());
  records.insert(records.end(), other.records.begin(), other.records.end());
  for (const UserReference& each : other.objects) objects.push_back(each);
}

void remember_graph(u64 graph, const GraphContents& contents) {
  const std::lock_guard lock(registry().mutex);
  GraphContents& own = registry().graphs[graph];
  own.merge(contents);
  // While it was being captured it was not known here.
  const auto held = registry().held.extract(graph);
  if (held.empty()) return;
  if (!held.mapped().objects.empty()) registry().inner.fetch_sub(1, std::memory_order_relaxed);
  for (auto& each : held.mapped().things) own.kept.push_back(std::move(each));
  for (auto& each : held.mapped().objects) own.objects.push_back(std::move(each));
}

bool forget_graph(u64 graph) {
  decltype(Registry::graphs)::node_type removed;  // destroyed after the lock is gone
  const std::lock_guard lock(registry().mutex);
  removed = registry().graphs.extract(graph);
  return !removed.empty();
}

bool with_graph(u64 graph, const std::function<void(GraphContents&)>& change) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().graphs.find(graph);
  if (found == registry().graphs.end()) return false;
  change(found->second);
  return true;
}

bool with_objects(u64 graph, const std::function<void(std::vector<UserReference>&)>& change) {
  if (with_graph(graph, [&](GraphContents& contents) { change(contents.objects); })) return true;
  if (const std::vector<u8> living = ask_living({graph}); living.empty() || living.front() == 0) return false;
  const std::lock_guard lock(registry().mutex);
  std::vector<UserReference>& objects = registry().held[graph].objects;
  const bool had = !objects.empty();
  change(objects);
  if (had != !objects.empty()) registry().inner.fetch_add(had ? ~0u : 1u, std::memory_order_relaxed);
  return true;
}

void drop_objects() {
  if (registry().inner.load(std::memory_order_relaxed) != 0) sweep(true);
}

bool may_have_objects(u64 graph) {
  if (registry().inner.load(std::memory_order_relaxed) != 0) return true;
  bool found = false;
  with_graph(graph, [&](const GraphContents& contents) { found = !contents.objects.empty(); });
  return found;
}

CUresult read_objects(u64 graph, std::vector<UserReference>& out) {
  if (!may_have_objects(graph)) return CUDA_SUCCESS;
  copy_references(graph, out);
  if (registry().inner.load(std::memory_order_relaxed) == 0) return CUDA_SUCCESS;
  std::vector<wire::InnerGraph> inside;
  const CUresult result = ask_list(wire::Function::graph_inside, {graph, 0}, inside);
  for (const wire::InnerGraph& each : inside) copy_references(each.graph, out);
  return result;
}

CUresult copy_objects(u64 graph, u64 copy) {
  if (!may_have_objects(graph)) return CUDA_SUCCESS;
  std::vector<wire::InnerGraph> inside;
  if (registry().inner.load(std::memory_order_relaxed) != 0)
    if (const CUresult result = ask_list(wire::Function::graph_inside, {graph, copy}, inside);
        result != CUDA_SUCCESS)
      return result;
  inside.push_back({graph, copy});
  for (const wire::InnerGraph& each : inside) {
    std::vector<UserReference> objects;
    copy_references(each.graph, objects);
    // To keep an object as long as the whole copy harms less than to release it too early.
    add_references(each.copy == 0 ? copy : each.copy, std::move(objects));
  }
  return CUDA_SUCCESS;
}

void move_objects_inside(u64 graph) {
  std::vector<UserReference> objects;
  with_graph(graph, [&](GraphContents& contents) { objects.swap(contents.objects); });
  forget_graph(graph);
  add_references(graph, std::move(objects));
}

CUresult read_contents(u64 graph, GraphContents& out) {
  if (const CUresult result = read_objects(graph, out.objects); result != CUDA_SUCCESS) return result;
  return read_followed(graph, out);
}

CUresult read_followed(u64 graph, GraphContents& out) {
  if (!registry().followed.load(std::memory_order_acquire)) return CUDA_SUCCESS;
  std::vector<wire::FollowedNode> nodes;
  if (const CUresult result = ask_list(wire::Function::graph_followed, {graph}, nodes);
      result != CUDA_SUCCESS)
    return result;
  for (const wire::FollowedNode& each : nodes) {
    if (each.kind == wire::FollowedKind::host_function) {
      if (auto call = find_host_call(static_cast<u32>(each.value)))
        out.host_calls.push_back({each.node, std::move(call)});
    } else if (each.kind == wire::FollowedKind::window) {
      if (auto piece = find_graph_piece(each.value)) out.copies.push_back({each.node, std::move(piece)});
    } else if (Event* event = event_of(each.value)) {
      out.records.push_back({each.node, event, event->handle});
    }
  }
  return CUDA_SUCCESS;
}

void note_followed_node() {
  registry().followed.store(true, std::memory_order_release);
}

void keep_for_graph(u64 graph, const std::shared_ptr<void>& thing) {
  note_followed_node();
  if (with_graph(graph, [&](GraphContents& contents) { contents.kept.push_back(thing); })) return;
  sweep();
  const std::lock_guard lock(registry().mutex);
  registry().held[graph].things.push_back(thing);
}

void keep_for_graph(u64 graph, const GraphContents& of) {
  for (const std::shared_ptr<void>& thing : of.kept) keep_for_graph(graph, thing);
  for (const HostNode& node : of.host_calls) keep_for_graph(graph, node.call);
  for (const HostCopy& copy : of.copies) keep_for_graph(graph, copy.piece);
}

bool keep_for_capture(Stream& stream, const std::shared_ptr<void>& thing) {
  note_followed_node();
  const std::shared_ptr<Capture> capture = capture_of(stream);
  if (capture == nullptr) return false;
  const std::lock_guard lock(capture_mutex());
  if (capture->ended) return false;
  capture->contents->kept.push_back(thing);
  return true;
}

void keep_for_node(u64 node, std::vector<std::shared_ptr<void>> things) {
  note_followed_node();
  sweep();
  // What was there is destroyed after the lock is gone.
  const std::lock_guard lock(registry().mutex);
  registry().held[node].things.swap(things);
}

std::shared_ptr<NodeStorage> node_storage(CUgraphNode node) {
  sweep();
  const std::lock_guard lock(registry().mutex);
  Held& held = registry().held[bits(node)];
  if (held.storage == nullptr) held.storage = std::make_shared<NodeStorage>();
  return held.storage;
}

void remember_exec(u64 exec, u64 source, u64 flags, GraphContents contents) {
  auto entry = std::make_shared<ExecContents>();
  entry->contents = std::make_shared<GraphContents>(std::move(contents));
  entry->source = source;
  entry->flags = flags;
  entry->allocates = g_graphs_allocate.load(std::memory_order_relaxed);
  entry->context = current_context();
  const std::lock_guard lock(registry().mutex);
  registry().execs[exec] = std::move(entry);
}

// The worker destroys them with the rest of the context.
static void forget_execs(Context& context) {
  std::vector<std::shared_ptr<ExecContents>> dropped;  // destroyed after the lock is gone
  const std::lock_guard lock(registry().mutex);
  std::erase_if(registry().execs, [&](const auto& each) {
    if (each.second->context != &context) return false;
    dropped.push_back(each.second);
    return true;
  });
}

[[maybe_unused]] static const bool kRegistered = at_context_end(&forget_execs);

std::shared_ptr<ExecContents> find_exec(u64 exec) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().execs.find(exec);
  return found == registry().execs.end() ? nullptr : found->second;
}

std::shared_ptr<ExecContents> take_exec(u64 exec) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().execs.find(exec);
  if (found == registry().execs.end()) return nullptr;
  std::shared_ptr<ExecContents> entry = std::move(found->second);
  registry().execs.erase(found);
  return entry;
}

void forget_accepted(u64 graph) {
  std::vector<std::shared_ptr<ExecContents>> of;  // an exec's lock is never taken under the registry's
  {
    const std::lock_guard lock(registry().mutex);
    for (const auto& [handle, exec] : registry().execs)
      if (graph == 0 || exec->source.load(std::memory_order_relaxed) == graph) of.push_back(exec);
  }
  for (const auto& exec : of) {
    const std::lock_guard lock(exec->mutex);
    exec->accepted.clear();
    exec->accepted_children.clear();
    if (graph != 0) exec->source.store(0, std::memory_order_relaxed);
  }
}

void change_exec(CUgraphExec handle, const std::function<void(GraphContents&)>& change) {
  const std::shared_ptr<ExecContents> exec = find_exec(bits(handle));
  if (exec == nullptr) return;
  const std::lock_guard lock(exec->mutex);
  auto contents = std::make_shared<GraphContents>(*exec->contents);
  change(*contents);
  exec->contents = std::move(contents);
}

}  // namespace gpupool::guest
