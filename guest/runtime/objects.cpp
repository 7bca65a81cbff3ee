#include "guest/runtime/objects.hpp"

#include <array>
#include <type_traits>
#include <utility>

#include "guest/runtime/message.hpp"
#include "wire/cpp/layout.hpp"

namespace gpupool::guest {

Slab<Context> g_contexts;
Slab<Stream> g_streams;
Slab<Event> g_events;
Slab<Function> g_functions;
Slab<Module> g_modules;
Slab<Library> g_libraries;

static_assert(std::is_trivially_destructible_v<Slab<Function>>);

namespace {

// The worker's tables hold 2^20 objects of a kind (hostd/worker/handle_table.hpp). Streams are fewer: a
// stream's index is also that of its completion word. Index 0 is never used.
constexpr u32 kObjects = (1u << 20) - 1;
constexpr u32 kStreams = wire::kWords - 1;
constexpr u32 kContexts = 1023;
constexpr size_t kResting = 256;

u32 limit_of(wire::HandleKind kind) {
  if (kind == wire::HandleKind::stream) return kStreams;
  if (kind == wire::HandleKind::context) return kContexts;
  return kObjects;
}

}  // namespace

wire::Handle HandleAllocator::take() {
  std::unique_lock lock(mutex_);
  // Old indices rest in a queue first; the worker's table then grows with the objects alive, not with those
  // made.
  if (next_ <= limit_ && free_.size() < kResting) return wire::Handle::make(kind_, 1, next_++);
  if (free_.empty()) {
    if (std::exchange(told_, true)) return {};
    lock.unlock();
    Call call(wire::Function::cap_reached);
    call.put(static_cast<u32>(kind_));
    call.send();  // only for the host's log: that it fails is no error of this call's
    return {};
  }
  const wire::Handle old = free_.front();
  free_.pop_front();
  // Generation 0 is skipped when the 24 bits wrap, so that no handle of kind 0 can look like "none".
  const u32 generation = (old.generation() + 1) & 0xff'ffffu;
  return wire::Handle::make(kind_, generation == 0 ? 1 : generation, old.index());
}

void HandleAllocator::give_back(wire::Handle handle) {
  if (!handle) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(handle);
}

HandleAllocator& handles(wire::HandleKind kind) {
  // Leaked on purpose: programs call the driver from exit handlers that run after static destructors.
  static auto& all = *[] {
    auto* table = new std::array<HandleAllocator*, static_cast<size_t>(wire::HandleKind::count_)>();
    for (size_t i = 0; i < table->size(); ++i) {
      const auto each = static_cast<wire::HandleKind>(i);
      (*table)[i] = new HandleAllocator(each, limit_of(each));
    }
    return table;
  }();
  return *all[static_cast<size_t>(kind)];
}

std::mutex& capture_mutex() {
  static auto& mutex = *new std::mutex();
  return mutex;
}

}  // namespace gpupool::guest
