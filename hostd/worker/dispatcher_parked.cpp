// The dispatcher while messages wait for the compute lease, or for room in what is in flight. They are kept
// here as they were copied, in order; the ring's slots behind them are looked at, so that what has nothing to
// do with the GPU's work is answered at once.
//
// A parked message's data stays in the window: the client takes pieces back once the ring's head, which does
// not pass the first parked message, has passed it. So there are never more of them than the ring has slots.
#include <cstring>

#include "hostd/worker/dispatcher.hpp"
#include "hostd/worker/lease_class.hpp"

namespace gpupool::worker {
namespace {

constexpr u32 kSpinUs = 200;
constexpr u32 kNapUs = 100;
constexpr u64 kAnswerNs = 50'000;

}  // namespace

void Dispatcher::park(const wire::Slot& slot, u64 ticket) {
  // The only allocation on this path, made while there is nothing else to do.
  Parked& place = parked_.emplace_back();
  place.ticket = ticket;
  std::memcpy(place.slot, static_cast<const void*>(&slot), sizeof place.slot);
  if (lease_class(static_cast<wire::Function>(slot.function)) == LeaseClass::ordered) ++parked_ordered_;
}

bool Dispatcher::may_pass(const wire::Slot& slot) const {
  return parked_ordered_ == 0 && (slot.flags & wire::kMark) == 0 &&
         lease_class(static_cast<wire::Function>(slot.function)) == LeaseClass::passes;
}

void Dispatcher::hold(const wire::Slot& slot, u64 ticket) {
  park(slot, ticket);
  while (!parked_.empty()) {
    const auto& first = *reinterpret_cast<const wire::Slot*>(parked_.front().slot);
    if (attempt(first, parked_.front().ticket)) {
      if (lease_class(static_cast<wire::Function>(first.function)) == LeaseClass::ordered) --parked_ordered_;
      parked_.pop_front();
      continue;
    }
    while (is_there(next_)) {
      alignas(64) u8 copy[sizeof(wire::Slot)];
      std::memcpy(copy, static_cast<const void*>(&worker_.window.slot(next_)), sizeof copy);
      const auto& next = *reinterpret_cast<const wire::Slot*>(copy);
      ++next_;
      if (!may_pass(next) || !attempt(next, next_ - 1)) park(next, next_ - 1);
    }
    wait_for_lease();
  }
}

// Returns when the first parked message may be tried again, or another message is there.
void Dispatcher::wait_for_lease() {
  wire::Control& control = worker_.window.control();
  control.head.store(parked_.front().ticket, std::memory_order_release);
  wire::Backoff backoff(kSpinUs, kNapUs);
  u64 open_since = 0;
  publish_counters(parked_.front().ticket, wire::monotonic_ns());
  while (true) {
    const u64 now = wire::monotonic_ns();
    busy_since_ns_ = now;
    if (now >= activity_.due_ns()) activity_.sample(now);
    const u32 bell = control.doorbell.load(std::memory_order_acquire);
    const u32 turn = gate_.turn();
    if (gate_.may_go_on(now) || is_there(next_)) return;
    if (worker_.answers_wait) [[unlikely]] {
      answer_waiting(now + kAnswerNs);
      continue;
    }
    if (gate_.drains()) {
      backoff.step();
      continue;
    }
    control.worker_sleeping.store(1, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // as in wait_for()
    if (!is_there(next_)) gate_.sleep(control.doorbell, bell, turn);
    control.worker_sleeping.store(0, std::memory_order_relaxed);
    check_stalled(next_, open_since);
  }
}

}  // namespace gpupool::worker
