// Events: a mark in a stream's order, and the time it was passed.
#pragma once

#include <memory>
#include <mutex>

#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

// One recording of an event.
struct Recording {
  Fence done;
  std::atomic<i64> time_ns{0};  // steady clock; set before `done`
};

struct Event {
  CUevent handle = nullptr;
  std::shared_ptr<Context> context;
  u32 flags = 0;

  std::mutex mutex;
  std::shared_ptr<Recording> recording;  // null before the first record

  // When last recorded into a capture: which, and what the capturing stream had last. Guarded by
  // graph_mutex().
  std::shared_ptr<Capture> capture;
  std::vector<std::shared_ptr<GraphNode>> frontier;

  std::shared_ptr<Recording> newest() {
    const std::lock_guard lock(mutex);
    return recording;
  }
};

Registry<Event, CUevent>& events();
// Forgets all events of a context.
void drop_events(const Context& context);

}  // namespace gpupool::softgpu
