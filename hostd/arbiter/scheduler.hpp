// Whose turn it is on one GPU. Pure: time and what workers say come in, leases come out; no clock, no memory
// that others write. docs/shares.md says what it promises.
//
// Each vGPU has a credit, in nanoseconds of GPU time: it grows by the vGPU's part of the time (plan.hpp)
// while it wants the GPU, and falls by the time that it holds it, to the end of its drain. So what one turn
// is too long or too short, the next ones put right. Exactly one vGPU holds the GPU; the lag of the others,
// credit by fraction, says whose turn is next.
#pragma once

#include <vector>

#include "hostd/arbiter/plan.hpp"

namespace gpupool::arbiter {

// What a worker says, or those of one vGPU, taken together.
struct Signals {
  bool wants = false;  // it waits to submit
  bool busy = false;   // it may have work in flight
  bool done = false;   // it wants, and will not use the lease that is out any more
  friend bool operator==(const Signals&, const Signals&) = default;
};

// What a vGPU is told, and a worker of it.
struct Lease {
  bool held = false;
  u64 number = 0;
  u64 end_ns = 0;
};

inline constexpr u64 kNever = ~u64{0};
inline constexpr size_t kNobody = ~size_t{0};

class Scheduler {
 public:
  // After a holder's end its work is waited for this long; then the lease passes on, and the driver's own
  // time slices are between the two until it is done.
  static constexpr u64 kDrainNs = 100'000'000;

  // The vGPUs that have sessions. What is known of those that stay is kept.
  void set_tenants(const std::vector<Tenant>& tenants, u64 now_ns);
  [[nodiscard]] const std::vector<Tenant>& tenants() const { return tenants_; }
  // False: everybody may submit at any time.
  [[nodiscard]] bool arbitrates() const { return arbitrates_; }

  // Decides, with what is heard of each tenant, in their order. Returns when to be called again if nothing
  // else is heard; `now_ns` itself when a lease was shut, and only what is read after that counts.
  u64 step(u64 now_ns, const std::vector<Signals>& heard);
  [[nodiscard]] Lease lease(size_t tenant) const;
  // Who has a lease that is not shut; kNobody.
  [[nodiscard]] size_t holder() const { return phase_ == Phase::held ? holder_ : kNobody; }

  [[nodiscard]] double credit_ns(size_t tenant) const { return accounts_[tenant].credit_ns; }
  // The time of the GPU that it has been charged so far.
  [[nodiscard]] u64 used_ns(size_t tenant) const { return static_cast<u64>(accounts_[tenant].used_ns); }

 private:
  enum class Phase { nobody, held, shut };
  struct Account {
    double credit_ns = 0;
    double used_ns = 0;
    double fraction = 0;   // of the time, now
    bool overran = false;  // was not drained in time, and has not been since
    bool woke = false;     // wants the GPU after a while without, and has not had it yet
    u64 idle_since_ns = 0;
    u64 ended_ns = 0;   // its last lease
    u64 length_ns = 0;  // of that, with the drain
  };

  [[nodiscard]] bool wants(size_t tenant) const;
  [[nodiscard]] bool is_hard(size_t tenant) const;
  [[nodiscard]] bool others_want() const;
  [[nodiscard]] double lag_ns(size_t tenant) const;
  // The largest credit in an even round of turns, and at its end the smallest.
  [[nodiscard]] double swing_ns(size_t tenant) const;
  [[nodiscard]] u64 slice_ns(size_t tenant) const;
  // When it may get the next lease; kNever while it does not want one.
  [[nodiscard]] u64 eligible_ns(size_t tenant, u64 now_ns) const;
  // Whether it has waited so long that it gets a short turn whatever its credit: there is nothing left for
  // it, or what it has in flight may itself wait for what it cannot submit.
  [[nodiscard]] bool is_due(size_t tenant, u64 now_ns) const;
  [[nodiscard]] size_t next(u64 now_ns) const;

  void charge(u64 now_ns);
  void hear(u64 now_ns, const std::vector<Signals>& heard);
  void divide_time(u64 now_ns);
  [[nodiscard]] bool gives_way(u64 now_ns) const;
  void grant(size_t tenant, u64 now_ns);
  void shut(u64 now_ns);
  void release(u64 now_ns);
  // One of the phases; true when another follows at once.
  bool go_on_held(u64 now_ns);
  bool go_on_shut(u64 now_ns);
  [[nodiscard]] u64 next_look_ns(u64 now_ns) const;

  std::vector<Tenant> tenants_;
  std::vector<Account> accounts_;
  std::vector<Signals> heard_;
  std::vector<size_t> wanting_;
  bool arbitrates_ = false;
  Phase phase_ = Phase::nobody;
  bool lingers_ = false;  // the holder is idle, and keeps its lease while nobody wants it
  size_t holder_ = kNobody;
  u64 number_ = 0;
  u64 granted_ns_ = 0;
  u64 end_ns_ = 0;
  u64 shut_ns_ = 0;
  u64 charged_ns_ = 0;
  double period_ns_ = 0;
};

}  // namespace gpupool::arbiter
