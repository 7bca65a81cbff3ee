#include "hostd/renderer/turn.hpp"

#include <algorithm>

#include "hostd/worker/log.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::renderer {
namespace {

using pages::LeasePage;
using pages::LeaseState;

constexpr size_t kMostBatches = 2;
constexpr u64 kGraceNs = 1'000'000;  // an empty session keeps its lease: programs that wait come back soon
constexpr u64 kNapNs = 100'000;
constexpr u64 kSleepNs = 100'000'000;

}  // namespace

bool LeaseTurn::is_free() const {
  return page_->grant.state.load(std::memory_order_seq_cst) == LeaseState::free;
}

bool LeaseTurn::holds() const {
  const LeaseState state = page_->grant.state.load(std::memory_order_seq_cst);
  return state == LeaseState::free ||
         (state == LeaseState::held && page_->grant.number.load(std::memory_order_relaxed) != done_);
}

bool LeaseTurn::is_orphan(u64 now_ns) {
  const u64 beat_ns = page_->grant.beat_ns.load(std::memory_order_relaxed);
  const bool silent = now_ns > beat_ns && now_ns - beat_ns > LeasePage::kSilentNs;
  if (silent && !orphan_)
    worker::log(worker::LogLevel::warning,
                "the GPU's arbiter is silent: going on without leases until there is one again");
  orphan_ = silent;
  return silent;
}

// Whether one more will be done by the end of the lease. The first one always may: it is charged.
bool LeaseTurn::fits(u64 now_ns) {
  const u64 number = page_->grant.number.load(std::memory_order_relaxed);
  const u64 expected_ns = used_ == number ? cost_ns_ * (flight_.size() + 1) : 0;
  if (now_ns + expected_ns < page_->grant.end_ns.load(std::memory_order_relaxed)) {
    used_ = number;
    return true;
  }
  done_ = number;
  page_->want.done.store(number, std::memory_order_seq_cst);
  return false;
}

void LeaseTurn::ring() {
  page_->want.bell.fetch_add(1, std::memory_order_seq_cst);
  wire::futex_wake(page_->want.bell);
}

void LeaseTurn::set_busy(bool busy) {
  if (busy_ == busy) return;
  busy_ = busy;
  page_->want.busy.store(busy ? 1 : 0, std::memory_order_seq_cst);
  if (!busy) ring();
}

void LeaseTurn::stop_watching() {
  watched_ = orphan_ = false;
  flight_.clear();
  page_->want.wants.store(0, std::memory_order_seq_cst);
  set_busy(false);
}

// Forgets the batches that are done.
void LeaseTurn::settle(u64 now_ns) {
  if (flight_.empty()) return;
  const u32 passed = backend_.passed();
  while (!flight_.empty() && static_cast<i32>(passed - flight_.front().fence) >= 0) {
    const u64 began_ns = std::max(flight_.front().since_ns, last_done_ns_);
    const u64 took_ns = now_ns - std::min(now_ns, began_ns);
    cost_ns_ = cost_ns_ == 0 || took_ns > 2 * cost_ns_ ? took_ns : (3 * cost_ns_ + took_ns) / 4;
    last_done_ns_ = now_ns;
    flight_.pop_front();
  }
}

void LeaseTurn::ask() {
  const bool news = page_->want.wants.exchange(1, std::memory_order_seq_cst) == 0;
  if (flight_.empty() && busy_)
    set_busy(false);
  else if (news)
    ring();
}

void LeaseTurn::nap(u32 turn) {
  wire::futex_wait_ns(page_->grant.turn, turn, flight_.empty() ? kSleepNs : kNapNs);
  const u64 now = wire::monotonic_ns();
  if (now - looked_ns_ < kSleepNs) return;
  looked_ns_ = now;
  look_();
}

void LeaseTurn::take() {
  if (page_ == nullptr) return;
  if (is_free()) [[likely]] {
    if (watched_) stop_watching();
    return;
  }
  if (!watched_) {  // what was submitted while the GPU was free may still run
    watched_ = true;
    flight_.push_back({backend_.fence(), wire::monotonic_ns()});
    set_busy(true);
  }
  while (true) {
    const u32 turn = page_->grant.turn.load(std::memory_order_seq_cst);
    const u64 now = wire::monotonic_ns();
    if (is_free()) return stop_watching();
    if (is_orphan(now)) return;
    settle(now);
    if (!holds()) {
      ask();
    } else if (flight_.size() < kMostBatches) {
      set_busy(true);  // said first, looked again then: the arbiter does it the other way round
      if (holds() && fits(now)) {
        if (page_->want.wants.load(std::memory_order_relaxed) != 0)
          page_->want.wants.store(0, std::memory_order_seq_cst);
        empty_ns_ = 0;
        return;
      }
      ask();
    }
    nap(turn);
  }
}

void LeaseTurn::submitted() {
  if (watched_ && !orphan_) flight_.push_back({backend_.fence(), wire::monotonic_ns()});
}

int LeaseTurn::idle() {
  if (!watched_) return -1;
  if (is_free()) {
    stop_watching();
    return -1;
  }
  if (!busy_) return -1;
  const u64 now = wire::monotonic_ns();
  settle(now);
  if (!flight_.empty()) return 1;
  if (empty_ns_ == 0) empty_ns_ = now;
  if (holds() && now - empty_ns_ < kGraceNs) return 1;
  empty_ns_ = 0;
  set_busy(false);
  return -1;
}

}  // namespace gpupool::renderer
