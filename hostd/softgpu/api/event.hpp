// Events: a mark in a stream's order, and the time it was passed.
#pragma once

#include <memory>
#include <mutex>

#include "hostd/softgpu/api/shared_file.hpp"
#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

// One recording of an event.
struct Recording {
  Fence done;
  std::atomic<i64> time_ns{0};  // steady clock; set before `done`
};

// The records of an event that several processes know: counters in memory that they share.
class SharedRecords : public std::enable_shared_from_this<SharedRecords> {
 public:
  struct Counters {
    std::atomic<u64> issued;     // records put on streams
    std::atomic<u64> completed;  // the newest of them that a stream has got to
  };
  explicit SharedRecords(std::shared_ptr<SharedFile> file);
  ~SharedRecords();
  SharedRecords(const SharedRecords&) = delete;
  SharedRecords& operator=(const SharedRecords&) = delete;
  static std::shared_ptr<SharedRecords> create();

  void record(Stream& stream);
  void wait_on(Stream& stream);
  void wait() const;
  [[nodiscard]] bool complete() const { return counters_->completed.load() >= counters_->issued.load(); }
  [[nodiscard]] Counters& counters() const { return *counters_; }
  [[nodiscard]] const SharedFile& file() const { return *file_; }

 private:
  std::shared_ptr<SharedFile> file_;
  Counters* counters_;
};

struct Event {
  CUevent handle = nullptr;
  std::shared_ptr<Context> context;
  u32 flags = 0;

  std::shared_ptr<SharedRecords> shared;  // of an interprocess event; then `recording` is not used

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
