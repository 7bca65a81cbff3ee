// The compute lease, as the worker keeps it: what submits work to a GPU that is shared by leases waits here
// for this vGPU's turn, and what is in flight at its end is small. The other end is the GPU's arbiter
// (hostd/arbiter), over a page a GPU (hostd/pages/lease_page.hpp); docs/shares.md has the whole picture.
//
// On a GPU where nobody has to wait, all of this is one load and a predicted branch a message (is_watched).
// Only the dispatcher comes here; the launch crew gets only what has passed.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "hostd/pages/lease_page.hpp"
#include "hostd/worker/in_flight.hpp"
#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

class Gate {
 public:
  Gate(Worker& worker, InFlight::MakeCurrent make_current);

  // The context of that index (0: none) has been made current.
  void entered(u32 context) {
    if (!lanes_.empty()) enter(context);
  }
  // What contexts' indices mean has changed.
  void contexts_changed() { lane_of_.clear(); }
  // Whether submitting to the current context's GPU goes by leases.
  [[nodiscard]] bool is_watched() const {
    return grant_->state.load(std::memory_order_relaxed) != pages::LeaseState::free;
  }

  // The same for OpenGL, which draws on the first GPU.
  [[nodiscard]] bool is_drawing_watched() const {
    return drawing_grant_->state.load(std::memory_order_relaxed) != pages::LeaseState::free;
  }

  // A stream of the current context is about to be captured or destroyed: then what is in flight on it cannot
  // be marked any more. The driver's current context may be another afterwards.
  void mark() {
    if (lane_ != nullptr) lane_->flight.close();
  }
  // Whether this message, which submits work, may be executed now. The driver's current context may be
  // another afterwards.
  [[nodiscard]] bool admit(const wire::Slot& slot);
  [[nodiscard]] bool admit_drawing() { return admit(*lanes_.front(), {}, true); }
  // After a refusal. Whether the same message may be admitted now, as far as one can see from here.
  [[nodiscard]] bool may_go_on(u64 now_ns);
  // Whether it waits for something in flight, which rings nowhere.
  [[nodiscard]] bool drains() const { return !refused_->flight.is_empty(); }
  // A word that changes with the lease, to be read before may_go_on(); sleeps until it or `doorbell` differs.
  [[nodiscard]] u32 turn() const { return refused_->page->grant.turn.load(std::memory_order_seq_cst); }
  void sleep(const std::atomic<u32>& doorbell, u32 bell, u32 turn);
  // When tend() wants to be called while the dispatcher waits for messages; ~0 for never.
  [[nodiscard]] u64 due_ns() const { return due_ns_; }
  // Notices that what is in flight is done, and says so.
  void tend(u64 now_ns);
  // A context has faulted: nothing in it will ever be done.
  void lost();

 private:
  // A GPU of this session.
  struct Lane {
    Lane(Worker& worker, InFlight::MakeCurrent make_current, pages::LeasePage* its)
        : flight(worker, std::move(make_current)), page(its) {}
    InFlight flight;
    pages::LeasePage* page;
    bool watched = false;
    bool busy = false;    // as the page says
    bool orphan = false;  // there is no arbiter: it submits without leases
    bool stuck = false;   // waiting for room has taken too long: what is in flight may wait for what comes
    u64 full_ns = 0;      // since when it has been waiting for room
    u64 used = 0;         // the newest lease under which something was submitted
    u64 done = 0;         // the newest lease that it will not use any more
    u64 empty_ns = 0;     // since when nothing is in flight, and it still holds its lease
    u64 emptied_ns = 0;   // when that last began
    u64 gap_ns = 0;       // how long it usually is
  };

  void enter(u32 context);
  bool admit(Lane& lane, wire::Handle stream, bool draws);
  void watch(Lane& lane, u64 now_ns);
  void unwatch(Lane& lane);
  void ring(Lane& lane);
  void set_busy(Lane& lane, bool busy);
  // Whether it may submit now; true also when leases are no longer needed.
  bool holds(Lane& lane);
  bool has_room(Lane& lane, u64 now_ns);
  bool fits(Lane& lane, u64 now_ns);
  // Says that it wants a lease; what is in flight is finished.
  void ask(Lane& lane, u64 now_ns);
  // True when the arbiter has been silent for too long: then the lane is an orphan.
  bool is_orphan(Lane& lane, u64 now_ns);
  // How long an empty lane keeps its lease: a program that waits for each piece of work comes back soon.
  static u64 grace_ns(const Lane& lane);
  void tend(Lane& lane, u64 now_ns);

  Worker& worker_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // by index of device; empty where there are no lease pages
  std::unordered_map<u32, Lane*> lane_of_;    // by index of context
  Lane* lane_ = nullptr;                      // of the current context
  const pages::LeasePage::Grant* grant_;      // its page's, or one that is always free
  const pages::LeasePage::Grant* drawing_grant_;
  Lane* refused_ = nullptr;    // by the last admit() that refused
  bool waits_on_many_ = true;  // futex_waitv: Linux 5.16
  u64 due_ns_ = ~u64{0};
};

}  // namespace gpupool::worker
