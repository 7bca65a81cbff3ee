// Made-up clients on a made-up GPU, for tests of the arbiter. Work of one client at a time, unless one goes
// on after its lease: then the GPU is divided in equal parts, as by the driver's time slices.
#pragma once

#include <algorithm>
#include <vector>

#include "hostd/arbiter/turns.hpp"

namespace gpupool::arbiter {

struct Client {
  u64 kernel_ns = 0;  // 0: it is idle
  u32 burst = 0;      // so many kernels, then a pause; 0: no pause
  u64 pause_ns = 0;
  u64 late_drain_ns = 0;  // it says for so long that it is not drained
};

class World {
 public:
  static constexpr u64 kTickNs = 20'000;
  static constexpr u64 kWakeNs = 60'000;  // from a grant to the first kernel, as a sleeping worker needs

  // A vGPU with one client.
  void add(Tenant tenant, Client client) {
    tenants_.push_back(tenant);
    join(tenant.id, client);
  }
  // One more client of a vGPU. Returns its place.
  size_t join(u64 id, Client client) {
    members_.push_back(Member{.client = client, .tenant = index_of(id)});
    members_.back().ready_ns = now_ns_;
    sit();
    return members_.size() - 1;
  }
  void leave(size_t place) {
    members_.erase(members_.begin() + static_cast<std::ptrdiff_t>(place));
    sit();
  }
  void resize(const std::vector<Tenant>& tenants) {
    tenants_ = tenants;
    sit();
  }
  // What a vGPU's clients have had of the GPU; what one has had.
  [[nodiscard]] u64 used_ns(u64 id) const {
    u64 sum = 0;
    for (const Member& one : members_)
      if (tenants_[one.tenant].id == id) sum += one.used_ns;
    return sum;
  }
  [[nodiscard]] u64 used_by_ns(size_t place) const { return members_[place].used_ns; }
  [[nodiscard]] u64 longest_wait_ns(u64 id) const { return longest_wait_by_ns(first_of(id)); }
  [[nodiscard]] u64 longest_wait_by_ns(size_t place) const { return members_[place].longest_wait_ns; }
  // For how long clients had the GPU at the same time.
  [[nodiscard]] u64 together_ns() const { return together_ns_; }

  void run(u64 time_ns) {
    for (const u64 end = now_ns_ + time_ns; now_ns_ < end; now_ns_ += kTickNs) {
      for (size_t i = 0; i < members_.size(); ++i) work(i);
      compute();
      arbitrate();
    }
  }

 private:
  struct Member {
    Client client;
    size_t tenant = 0;
    u64 session = 0;
    u64 left_ns = 0;  // of the work in flight
    u64 used_ns = 0;
    u64 ready_ns = 0;  // when it wants to submit again
    u64 done = 0;
    u64 lease = 0;  // the number it has seen
    u64 seen_ns = 0;
    u64 drained_ns = 0;
    u32 submitted = 0;  // of the burst
    bool wants = false;
    bool busy = false;
    u64 longest_wait_ns = 0;
  };

  [[nodiscard]] size_t index_of(u64 id) const {
    const auto found = std::ranges::find_if(tenants_, [&](const Tenant& one) { return one.id == id; });
    return static_cast<size_t>(found - tenants_.begin());
  }
  [[nodiscard]] size_t first_of(u64 id) const {
    const auto found =
        std::ranges::find_if(members_, [&](const Member& one) { return tenants_[one.tenant].id == id; });
    return static_cast<size_t>(found - members_.begin());
  }
  void sit() {
    std::vector<Session> sessions;
    for (Member& one : members_) {
      if (one.session == 0) one.session = ++sessions_;
      sessions.push_back({one.session, one.tenant});
    }
    turns_.set_sessions(tenants_, sessions, now_ns_);
    heard_.clear();
  }

  // What a worker does: submits while it fits, says when it has drained.
  void work(size_t i) {
    Member& one = members_[i];
    const Client& client = one.client;
    if (client.kernel_ns == 0) return;
    const Lease lease = turns_.lease(i);
    if (lease.held && lease.number != one.lease) {
      one.lease = lease.number;
      one.seen_ns = now_ns_;
    }
    const bool asks = now_ns_ >= one.ready_ns;
    const bool free = !turns_.scheduler().arbitrates();
    const bool may = free || (lease.held && lease.number != one.done && now_ns_ >= one.seen_ns + kWakeNs);
    // Half a millisecond in flight, or one kernel.
    const bool room = one.left_ns == 0 || one.left_ns + client.kernel_ns <= 500'000;
    if (asks && may && room) {
      const bool fits = free || now_ns_ + one.left_ns + client.kernel_ns / 2 < lease.end_ns || !one.busy;
      if (fits) {
        if (one.wants) one.longest_wait_ns = std::max(one.longest_wait_ns, now_ns_ - one.ready_ns);
        one.wants = false;
        one.busy = true;
        one.left_ns += client.kernel_ns;
        if (client.burst != 0 && ++one.submitted == client.burst) {
          one.submitted = 0;
          one.ready_ns = now_ns_ + one.left_ns + client.pause_ns;
        }
      } else if (one.left_ns == 0) {
        one.done = lease.number;
      }
    }
    if (one.left_ns != 0) {
      one.drained_ns = now_ns_;
      return;
    }
    const u64 grace_ns = may ? 250'000 : client.late_drain_ns;
    if (now_ns_ - one.drained_ns >= grace_ns || (one.done == one.lease && client.late_drain_ns == 0))
      one.busy = false;
    if (asks && !(may && one.done != one.lease)) one.wants = true;
  }

  void compute() {
    std::vector<Member*> active;
    for (Member& one : members_)
      if (one.left_ns != 0) active.push_back(&one);
    if (active.size() > 1) together_ns_ += kTickNs;
    for (Member* one : active) {
      const u64 part = std::min(one->left_ns, kTickNs / active.size());
      one->left_ns -= part;
      one->used_ns += part;
    }
  }

  void arbitrate() {
    for (int i = 0; i < 4; ++i) {
      std::vector<Signals> heard;
      for (const Member& one : members_)
        heard.push_back(Signals{one.wants, one.busy, one.wants && one.done == one.lease});
      if (now_ns_ < look_ns_ && heard == heard_) return;
      heard_ = heard;
      look_ns_ = turns_.step(now_ns_, heard);
    }
  }

  Turns turns_;
  std::vector<Tenant> tenants_;
  std::vector<Member> members_;
  std::vector<Signals> heard_;
  u64 now_ns_ = 1'000'000'000;
  u64 look_ns_ = 0;
  u64 together_ns_ = 0;
  u64 sessions_ = 0;
};

}  // namespace gpupool::arbiter
