// Made-up clients on a made-up GPU, for tests of the arbiter's scheduler. Work of one vGPU at a time, unless
// one goes on after its lease: then the GPU is divided in halves, as by the driver's time slices.
#pragma once

#include <algorithm>
#include <vector>

#include "hostd/arbiter/scheduler.hpp"

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

  void add(Tenant tenant, Client client) {
    tenants_.push_back(tenant);
    members_.push_back(Member{.client = client});
    members_.back().ready_ns = now_ns_;
    scheduler_.set_tenants(tenants_, now_ns_);
  }
  void resize(const std::vector<Tenant>& tenants) {
    tenants_ = tenants;
    scheduler_.set_tenants(tenants_, now_ns_);
  }
  [[nodiscard]] u64 used_ns(u64 id) const { return member(id).used_ns; }
  [[nodiscard]] u64 longest_wait_ns(u64 id) const { return member(id).longest_wait_ns; }

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

  [[nodiscard]] const Member& member(u64 id) const {
    for (size_t i = 0; i < tenants_.size(); ++i)
      if (tenants_[i].id == id) return members_[i];
    return members_[0];
  }

  // What a worker does: submits while it fits, says when it has drained.
  void work(size_t i) {
    Member& one = members_[i];
    const Client& client = one.client;
    if (client.kernel_ns == 0) return;
    const Lease lease = scheduler_.lease(i);
    if (lease.held && lease.number != one.lease) {
      one.lease = lease.number;
      one.seen_ns = now_ns_;
    }
    const bool asks = now_ns_ >= one.ready_ns;
    const bool free = !scheduler_.arbitrates();
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
      look_ns_ = scheduler_.step(now_ns_, heard);
    }
  }

  Scheduler scheduler_;
  std::vector<Tenant> tenants_;
  std::vector<Member> members_;
  std::vector<Signals> heard_;
  u64 now_ns_ = 1'000'000'000;
  u64 look_ns_ = 0;
};

}  // namespace gpupool::arbiter
