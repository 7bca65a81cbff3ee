#include "hostd/worker/gate.hpp"

#include <algorithm>
#include <utility>

#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/memory.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {

using pages::LeasePage;
using pages::LeaseState;

constexpr u64 kGraceNs = 250'000;       // an empty lane keeps its lease for at least so long
constexpr u64 kShortGapNs = 1'500'000;  // and twice its usual gap, if that is no longer than this
constexpr u64 kLongGapNs = 10'000'000;
constexpr u64 kMarkIdleNs = 50'000;  // an open batch is closed when nothing more has come for so long
constexpr u64 kLookNs = 50'000;      // the shortest and the longest time between two looks at marks
constexpr u64 kLongestLookNs = 500'000;
constexpr u64 kRoomNs = 20'000'000;
constexpr u64 kSleepNs = 100'000'000;
constexpr u64 kShortSleepNs = 200'000;  // where the lease's word cannot be heard beside the doorbell

// Of a session without lease pages: nobody ever writes it.
const LeasePage::Grant kAlwaysFree{};

}  // namespace

Gate::Gate(Worker& worker, InFlight::MakeCurrent make_current)
    : worker_(worker), grant_(&kAlwaysFree), drawing_grant_(&kAlwaysFree) {
  for (LeasePage* page : worker.leases) lanes_.push_back(std::make_unique<Lane>(worker, make_current, page));
  if (!lanes_.empty() && lanes_.front()->page != nullptr) drawing_grant_ = &lanes_.front()->page->grant;
}

void Gate::enter(u32 context) {
  lane_ = nullptr;
  grant_ = &kAlwaysFree;
  if (context == 0) return;
  const auto known = lane_of_.find(context);
  if (known != lane_of_.end()) {
    lane_ = known->second;
  } else {
    CUdevice device = 0;
    if (worker_.driver.cuCtxGetDevice(&device) != CUDA_SUCCESS) return;
    const i32 index = index_of_device(worker_, device);
    if (index >= 0 && static_cast<size_t>(index) < lanes_.size())
      lane_ = lanes_[static_cast<size_t>(index)].get();
    lane_of_[context] = lane_;
  }
  if (lane_ != nullptr && lane_->page != nullptr) grant_ = &lane_->page->grant;
}

void Gate::ring(Lane& lane) {
  lane.page->want.bell.fetch_add(1, std::memory_order_seq_cst);
  wire::futex_wake(lane.page->want.bell);
}

void Gate::set_busy(Lane& lane, bool busy) {
  if (lane.busy == busy) return;
  lane.busy = busy;
  lane.page->want.busy.store(busy ? 1 : 0, std::memory_order_seq_cst);
  if (!busy) ring(lane);
}

// From here on what is submitted is accounted for. What has been before is known only to the driver, so each
// stream that may have work outstanding gets a mark.
void Gate::watch(Lane& lane, u64 now_ns) {
  lane.watched = true;
  lane.orphan = false;
  worker_.streams.each([&](wire::Handle handle, const StreamEntry& entry) {
    const auto known = lane_of_.find(entry.context);
    if (entry.noted && known != lane_of_.end() && known->second == &lane) lane.flight.add(handle, now_ns);
  });
  if (&lane == lanes_.front().get() && worker_.drawing != nullptr && worker_.drawing->has_work())
    lane.flight.add_drawing(now_ns);
  if (!lane.flight.is_empty()) {
    set_busy(lane, true);
    lane.flight.close();
  }
  due_ns_ = std::min(due_ns_, now_ns + kLookNs);
}

void Gate::unwatch(Lane& lane) {
  lane.watched = false;
  lane.orphan = false;
  lane.stuck = false;
  lane.flight.forget();
  lane.page->want.wants.store(0, std::memory_order_seq_cst);
  set_busy(lane, false);
}

bool Gate::is_orphan(Lane& lane, u64 now_ns) {
  const u64 beat_ns = lane.page->grant.beat_ns.load(std::memory_order_relaxed);
  const bool silent = now_ns > beat_ns && now_ns - beat_ns > LeasePage::kSilentNs;
  if (silent && !lane.orphan)
    log(LogLevel::warning, "the GPU's arbiter is silent: going on without leases until there is one again");
  lane.orphan = silent;
  return silent;
}

bool Gate::holds(Lane& lane) {
  const LeasePage::Grant& grant = lane.page->grant;
  const LeaseState state = grant.state.load(std::memory_order_seq_cst);
  return state == LeaseState::free ||
         (state == LeaseState::held && grant.number.load(std::memory_order_relaxed) != lane.done);
}

// Whether little enough is in flight.
bool Gate::has_room(Lane& lane, u64 now_ns) {
  InFlight& flight = lane.flight;
  flight.look(now_ns);
  if (flight.wants_mark(now_ns)) flight.close();
  if (!flight.is_full()) {
    lane.stuck = false;
    lane.full_ns = 0;
    return true;
  }
  if (lane.full_ns == 0) lane.full_ns = now_ns;
  // A stream may wait for a value that the client's next messages write: then this would be for ever.
  lane.stuck = lane.stuck || now_ns - lane.full_ns > std::max(kRoomNs, 4 * flight.cost_ns());
  return lane.stuck;
}

// Whether one more will be done by the end of the lease. The first one always may: it is charged. So may what
// comes while the lane is stuck: what is in flight takes no time, it waits.
bool Gate::fits(Lane& lane, u64 now_ns) {
  const LeasePage::Grant& grant = lane.page->grant;
  const u64 number = grant.number.load(std::memory_order_relaxed);
  const u64 expected_ns = lane.used == number && !lane.stuck ? lane.flight.expected_ns() : 0;
  if (now_ns + expected_ns < grant.end_ns.load(std::memory_order_relaxed)) {
    lane.used = number;
    return true;
  }
  lane.done = number;
  lane.page->want.done.store(number, std::memory_order_seq_cst);
  return false;
}

bool Gate::admit(const wire::Slot& slot) {
  if (!slot.stream) throw wire::ProtocolError("work without a stream");  // it could not be marked
  const StreamEntry* stream = worker_.streams.find(slot.stream);
  if (stream != nullptr && stream->capturing) return true;  // recorded, not submitted
  return admit(*lane_, slot.stream, false);
}

bool Gate::admit(Lane& lane, wire::Handle stream, bool draws) {
  const u64 now = wire::monotonic_ns();
  if (!lane.watched) watch(lane, now);
  if (lane.page->grant.state.load(std::memory_order_seq_cst) == LeaseState::free) {
    unwatch(lane);
    return true;
  }
  if (lane.orphan) {
    if (is_orphan(lane, now)) return true;
    watch(lane, now);  // there is an arbiter again
  }
  refused_ = &lane;
  if (holds(lane)) {
    if (!has_room(lane, now)) return false;
    // Said first, looked again then: the arbiter does it the other way round.
    set_busy(lane, true);
    if (holds(lane) && fits(lane, now)) {
      if (lane.page->want.wants.load(std::memory_order_relaxed) != 0)
        lane.page->want.wants.store(0, std::memory_order_seq_cst);
      if (draws)
        lane.flight.add_drawing(now);
      else
        lane.flight.add(stream, now);
      if (lane.emptied_ns != 0)
        lane.gap_ns = (3 * lane.gap_ns + std::min(now - std::min(now, lane.emptied_ns), kLongGapNs)) / 4;
      lane.empty_ns = lane.emptied_ns = 0;
      due_ns_ = std::min(due_ns_, now + kLookNs);
      return true;
    }
  }
  ask(lane, now);
  return false;
}

void Gate::ask(Lane& lane, u64 now_ns) {
  lane.flight.close();
  lane.flight.look(now_ns);
  const bool news = lane.page->want.wants.exchange(1, std::memory_order_seq_cst) == 0;
  if (lane.flight.is_empty() && lane.busy)
    set_busy(lane, false);
  else if (news)
    ring(lane);
}

bool Gate::may_go_on(u64 now_ns) {
  Lane& lane = *refused_;
  if (lane.page->grant.state.load(std::memory_order_seq_cst) == LeaseState::free) return true;
  if (holds(lane)) return has_room(lane, now_ns);
  if (is_orphan(lane, now_ns)) return true;
  ask(lane, now_ns);
  return false;
}

void Gate::sleep(const std::atomic<u32>& doorbell, u32 bell, u32 turn) {
  if (waits_on_many_) {
    const wire::WaitOn words[] = {wire::wait_on(doorbell, bell),
                                  wire::wait_on(refused_->page->grant.turn, turn)};
    waits_on_many_ = wire::futex_wait_any(words, 2, kSleepNs);
  }
  if (!waits_on_many_) wire::futex_wait_ns(doorbell, bell, kShortSleepNs);
}

u64 Gate::grace_ns(const Lane& lane) {
  return lane.gap_ns > kShortGapNs ? kGraceNs : std::max(kGraceNs, 2 * lane.gap_ns);
}

void Gate::tend(u64 now_ns) {
  due_ns_ = ~u64{0};
  for (const auto& lane : lanes_)
    if (lane->page != nullptr && lane->watched) tend(*lane, now_ns);
}

void Gate::tend(Lane& lane, u64 now_ns) {
  if (lane.page->grant.state.load(std::memory_order_relaxed) == LeaseState::free) return unwatch(lane);
  if (!lane.busy) return;
  InFlight& flight = lane.flight;
  if (flight.is_open() && now_ns - flight.last_submitted_ns() >= kMarkIdleNs) flight.close();
  flight.look(now_ns);
  if (!flight.is_empty()) {
    lane.empty_ns = 0;
  } else {
    if (lane.empty_ns == 0) lane.empty_ns = lane.emptied_ns = now_ns;
    if (!holds(lane) || now_ns - lane.empty_ns >= grace_ns(lane)) {
      lane.empty_ns = 0;
      return set_busy(lane, false);
    }
  }
  const u64 waited_ns = now_ns - flight.last_submitted_ns();
  due_ns_ = std::min(due_ns_, now_ns + std::clamp(waited_ns / 4, kLookNs, kLongestLookNs));
}

void Gate::lost() {
  for (const auto& lane : lanes_) {
    if (lane->page == nullptr || !lane->watched) continue;
    lane->flight.forget();
    set_busy(*lane, false);
  }
}

}  // namespace gpupool::worker
