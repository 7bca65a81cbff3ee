// Which session has the lease of its vGPU. Pure, like the scheduler below it, which knows vGPUs only.
//
// What two processes submit at the same time is divided by the driver's time slices, which costs an eighth of
// the GPU (docs/shares.md). So a vGPU's lease is one session's at a time, and passes on within the vGPU's
// turn when that session has nothing to do, or has had enough while another waits. One vGPU has one account:
// who uses its lease changes nothing for the others.
#pragma once

#include <vector>

#include "hostd/arbiter/scheduler.hpp"

namespace gpupool::arbiter {

// A session as the quota page has it.
struct Session {
  u64 id = 0;
  size_t tenant = 0;  // index of its vGPU
  friend bool operator==(const Session&, const Session&) = default;
};

class Turns {
 public:
  // Of one session while others of its vGPU wait, if the vGPU's lease is as long. An even lease of two vGPUs
  // is shorter: then their sessions have whole leases in turn.
  static constexpr u64 kTurnNs = 20'000'000;
  // While one waits that has just come. Also of one that could not be drained before: what it has in flight
  // may wait for what the others submit.
  static constexpr u64 kShortTurnNs = 2'000'000;
  // A session's work is waited for this long before the next one of its vGPU. Then both have the GPU at
  // once, which is slower and nothing else: it is their own time.
  static constexpr u64 kDrainNs = 5'000'000;

  // What is known of those that stay is kept.
  void set_sessions(const std::vector<Tenant>& tenants, const std::vector<Session>& sessions, u64 now_ns);
  [[nodiscard]] const Scheduler& scheduler() const { return scheduler_; }

  // As Scheduler::step(), with what is heard of each session, in their order. `done`: it will not use the
  // lease that it has any more.
  u64 step(u64 now_ns, const std::vector<Signals>& heard);
  [[nodiscard]] Lease lease(size_t session) const;

 private:
  enum class Phase { nobody, held, shut };
  struct Seat {
    Session session;
    Signals heard;
    bool woke = false;      // wants the GPU after a while without, and has not had it yet
    u64 idle_since_ns = 0;  // a new one has just come, too
    u64 ended_ns = 0;       // its last turn
    u64 overran_ns = 0;     // when it was last not drained in time
  };

  void hear(u64 now_ns, const std::vector<Signals>& heard);
  [[nodiscard]] std::vector<Signals> of_tenants(u64 now_ns) const;
  // Whether the one that has the lease will not use it any more, as far as it says.
  [[nodiscard]] bool is_through() const;
  [[nodiscard]] static bool overran(const Seat& seat, u64 now_ns);
  [[nodiscard]] bool others_want() const;
  // When the holder's turn ends, for those of its vGPU that wait.
  [[nodiscard]] u64 turn_end_ns(u64 lease_end_ns, u64 now_ns) const;
  [[nodiscard]] size_t next(size_t tenant) const;
  // Passes the vGPU's lease on if it is time; returns when to be called again, `now_ns` after shutting.
  u64 pass_on(u64 now_ns);
  void end_turn(u64 now_ns);

  Scheduler scheduler_;
  std::vector<Seat> seats_;
  Phase phase_ = Phase::nobody;
  size_t holder_ = kNobody;
  u64 lease_ = 0;   // the number of the vGPU's lease that the turn is a part of
  u64 number_ = 0;  // of the turn: what the session is told
  u64 granted_ns_ = 0;
  u64 end_ns_ = 0;
  u64 shut_ns_ = 0;
};

}  // namespace gpupool::arbiter
