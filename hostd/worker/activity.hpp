// Whether the session has work outstanding on each of its GPUs, in samples of 20 ms: what NVML in the guest
// shows as utilisation. Kept by the dispatcher, which alone knows the streams and may ask the driver about
// them.
//
// Costs nothing while nothing is outstanding. While something is, a dispatcher that waits for the ring asks
// the driver 50 times a second about the streams that were used since, until one of them is busy; one that is
// issuing is not interrupted at all, and the time until it waits again counts as busy. A launch pays a test
// of one byte of its stream's entry.
#pragma once

#include <functional>
#include <vector>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

class Activity {
 public:
  // Makes the context with that handle index current; false when it is gone.
  using MakeCurrent = std::function<bool(u32 context)>;

  Activity(Worker& worker, MakeCurrent make_current);

  // A slot names this stream, and the stream's context is current.
  void used(wire::Handle handle, StreamEntry& stream) {
    if (!stream.noted) note(handle, stream);
  }
  // When sample() is due, in CLOCK_MONOTONIC nanoseconds; never while nothing is outstanding.
  [[nodiscard]] u64 due_ns() const { return due_ns_; }
  // Looks which streams have finished.
  void sample(u64 now_ns);

 private:
  struct Used {
    wire::Handle handle;
    u32 device = 0;  // the session's index
  };

  void note(wire::Handle handle, StreamEntry& stream);
  // Whether work is outstanding on it; `keep` when it must be looked at again.
  bool busy(const Used& used, bool capturing, bool& keep);
  // Shifts in one sample, and what held since the one before.
  void record(u32 device, u64 slot, bool busy);

  Worker& worker_;
  MakeCurrent make_current_;
  u64 due_ns_ = ~u64{0};
  std::vector<Used> used_;  // streams that may have work outstanding
};

}  // namespace gpupool::worker
