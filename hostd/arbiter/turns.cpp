#include "hostd/arbiter/turns.hpp"

#include <algorithm>

namespace gpupool::arbiter {
namespace {

constexpr u64 kAwayNs = 1'000'000;       // whoever wanted nothing for so long has just come
constexpr u64 kLeastTurnNs = 1'000'000;  // what is less at a lease's end is not passed on
constexpr u64 kShortDrainNs = 1'000'000;
constexpr u64 kOverranNs = 1'000'000'000;

}  // namespace

void Turns::set_sessions(const std::vector<Tenant>& tenants, const std::vector<Session>& sessions,
                         u64 now_ns) {
  scheduler_.set_tenants(tenants, now_ns);
  const u64 holder = holder_ == kNobody ? 0 : seats_[holder_].session.id;
  holder_ = kNobody;
  std::vector<Seat> seats;
  for (const Session& session : sessions) {
    const auto known =
        std::ranges::find_if(seats_, [&](const Seat& seat) { return seat.session.id == session.id; });
    Seat& seat = seats.emplace_back();
    if (known != seats_.end())
      seat = *known;
    else
      seat.ended_ns = now_ns;
    seat.session = session;
    if (session.id == holder) holder_ = seats.size() - 1;
  }
  if (holder_ == kNobody) phase_ = Phase::nobody;
  seats_ = std::move(seats);
}

void Turns::hear(u64 now_ns, const std::vector<Signals>& heard) {
  for (size_t i = 0; i < seats_.size(); ++i) {
    Seat& seat = seats_[i];
    const bool was_active = seat.heard.wants || seat.heard.busy;
    if (was_active && !heard[i].wants && !heard[i].busy) seat.idle_since_ns = now_ns;
    if (!was_active && heard[i].wants && now_ns - seat.idle_since_ns >= kAwayNs) seat.woke = true;
    seat.heard = heard[i];
  }
}

// Whether it could not be drained lately: what it has in flight is long, or waits for what others submit.
bool Turns::overran(const Seat& seat, u64 now_ns) {
  return seat.overran_ns != 0 && now_ns - seat.overran_ns < kOverranNs;
}

bool Turns::is_through() const {
  return holder_ != kNobody && (!seats_[holder_].heard.wants || seats_[holder_].heard.done);
}

bool Turns::others_want() const {
  for (size_t i = 0; i < seats_.size(); ++i)
    if (i != holder_ && seats_[i].session.tenant == seats_[holder_].session.tenant && seats_[i].heard.wants)
      return true;
  return false;
}

std::vector<Signals> Turns::of_tenants(u64 now_ns) const {
  std::vector<Signals> all(scheduler_.tenants().size());
  for (const Seat& seat : seats_) {
    Signals& signals = all[seat.session.tenant];
    signals.wants = signals.wants || seat.heard.wants;
    signals.busy = signals.busy || seat.heard.busy;
  }
  if (is_through()) {
    const size_t tenant = seats_[holder_].session.tenant;
    const u64 end_ns = scheduler_.lease(tenant).end_ns;
    all[tenant].done = all[tenant].wants && (!others_want() || end_ns < now_ns + kLeastTurnNs);
  }
  return all;
}

u64 Turns::turn_end_ns(u64 lease_end_ns, u64 now_ns) const {
  const Seat& holder = seats_[holder_];
  bool is_short = overran(holder, now_ns);
  for (const Seat& seat : seats_)
    is_short = is_short || (seat.session.tenant == holder.session.tenant && seat.woke);
  const u64 turn_ns = is_short ? kShortTurnNs : kTurnNs;
  // A rest that is no turn of its own belongs to this one.
  return lease_end_ns < granted_ns_ + turn_ns + turn_ns / 2 ? lease_end_ns : granted_ns_ + turn_ns;
}

// Whoever has just come; then whoever has waited for the longest time.
size_t Turns::next(size_t tenant) const {
  size_t best = kNobody;
  for (size_t i = 0; i < seats_.size(); ++i) {
    const Seat& seat = seats_[i];
    if (seat.session.tenant != tenant || !seat.heard.wants) continue;
    if (best == kNobody || seat.woke > seats_[best].woke ||
        (seat.woke == seats_[best].woke && seat.ended_ns < seats_[best].ended_ns))
      best = i;
  }
  return best;
}

void Turns::end_turn(u64 now_ns) {
  if (holder_ != kNobody) seats_[holder_].ended_ns = now_ns;
  holder_ = kNobody;
  phase_ = Phase::nobody;
}

u64 Turns::pass_on(u64 now_ns) {
  const size_t tenant = scheduler_.holder();
  const Lease lease = tenant == kNobody ? Lease{} : scheduler_.lease(tenant);
  if (!lease.held || lease.number != lease_) end_turn(now_ns);
  if (!lease.held) return kNever;
  lease_ = lease.number;
  if (phase_ == Phase::held) {
    const bool others = others_want();
    end_ns_ = others ? turn_end_ns(lease.end_ns, now_ns) : lease.end_ns;
    if (!others || lease.end_ns < now_ns + kLeastTurnNs) return kNever;
    const bool is_idle = !seats_[holder_].heard.busy && is_through();
    if (!is_idle && now_ns < end_ns_) return end_ns_;
    phase_ = Phase::shut;
    shut_ns_ = now_ns;
    return now_ns;
  }
  if (phase_ == Phase::shut && seats_[holder_].heard.busy) {
    const u64 until_ns = shut_ns_ + (overran(seats_[holder_], now_ns) ? kShortDrainNs : kDrainNs);
    if (now_ns < until_ns) return until_ns;
    seats_[holder_].overran_ns = now_ns;
  }
  end_turn(now_ns);
  holder_ = next(tenant);
  if (holder_ == kNobody) return kNever;
  phase_ = Phase::held;
  ++number_;
  granted_ns_ = now_ns;
  seats_[holder_].woke = false;
  end_ns_ = others_want() ? turn_end_ns(lease.end_ns, now_ns) : lease.end_ns;
  return end_ns_;
}

u64 Turns::step(u64 now_ns, const std::vector<Signals>& heard) {
  hear(now_ns, heard);
  const u64 look_ns = scheduler_.step(now_ns, of_tenants(now_ns));
  return std::min(look_ns, pass_on(now_ns));
}

Lease Turns::lease(size_t session) const {
  if (session != holder_ || phase_ != Phase::held) return Lease{};
  return Lease{true, number_, end_ns_};
}

}  // namespace gpupool::arbiter
