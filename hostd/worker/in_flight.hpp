// What a session has submitted to one GPU and may not be done yet, in batches of some half a millisecond of
// work. A batch ends with a mark on each stream that it used: a word that the GPU writes, so that looking
// costs a read. Kept only while the GPU is shared by leases (gate.hpp).
//
// Invariant: what was submitted counts as in flight until a mark behind it has been written, or its context
// is gone. So a stream is marked before it is captured or destroyed (gate.hpp), and later where it cannot be
// now.
//
// Only the dispatcher comes here.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

class InFlight {
 public:
  // Makes the context with that handle index current; false when it is gone.
  using MakeCurrent = std::function<bool(u32 context)>;
  InFlight(Worker& worker, MakeCurrent make_current)
      : worker_(worker), make_current_(std::move(make_current)) {}

  // Something is about to be submitted to this stream (null: to none of ours).
  void add(wire::Handle stream, u64 now_ns);
  // OpenGL is about to be given commands.
  void add_drawing(u64 now_ns) {
    add({}, now_ns);
    open_.drawn = true;
  }
  // Whether the open batch is large enough to be closed.
  [[nodiscard]] bool wants_mark(u64 now_ns) const;
  // Ends the open batch. The driver's current context may be another afterwards.
  void close();
  // Forgets the batches that are done.
  void look(u64 now_ns);
  // Whether more should wait until some of it is done.
  [[nodiscard]] bool is_full() const;
  // Nothing is in flight, as far as look() knows; an open batch counts as in flight.
  [[nodiscard]] bool is_empty() const { return batches_.empty() && open_.submissions == 0; }
  [[nodiscard]] bool is_open() const { return open_.submissions != 0; }
  [[nodiscard]] u64 last_submitted_ns() const { return last_ns_; }
  // How long what is in flight will take, and half of one more: who stops when that reaches the end of the
  // lease is right on average. By what the last batches took.
  [[nodiscard]] u64 expected_ns() const { return cost_ns_ * submissions_ + cost_ns_ / 2; }
  [[nodiscard]] u64 cost_ns() const { return cost_ns_; }
  // Nothing is known any more: the context is lost.
  void forget();

 private:
  struct Mark {
    u32 word = 0;
    u64 value = 0;
    u32 context = 0;
  };
  struct Batch {
    u32 submissions = 0;
    u64 first_ns = 0;
    std::vector<wire::Handle> streams;
    std::vector<Mark> marks;
    bool drawn = false;  // by OpenGL, too: a fence of its is a mark
    u64 fence = 0;
    std::vector<wire::Handle> unmarked;  // of these streams: no mark may be put on them now
  };

  [[nodiscard]] bool is_done(const Batch& batch) const;
  bool prepare_words();
  u32 next_word();
  bool may_mark(const StreamEntry& entry) const;
  // False when the driver refuses.
  bool mark(wire::Handle stream, Batch& batch);
  bool mark_late(Batch& batch);

  Worker& worker_;
  MakeCurrent make_current_;
  Batch open_;
  std::deque<Batch> batches_;
  std::atomic<u64>* words_ = nullptr;  // this process's own, not the window's: the client must not write them
  std::vector<u64> newest_;            // by word: the value of its newest mark
  bool gpu_writes_ = false;
  u32 next_word_ = 0;
  u64 value_ = 0;
  u64 submissions_ = 0;  // in flight
  u32 most_ = 1;         // submissions of a batch
  u64 cost_ns_ = 0;      // of one submission
  u64 last_ns_ = 0;
  u64 last_done_ns_ = 0;
};

}  // namespace gpupool::worker
