#include "hostd/arbiter/scheduler.hpp"

#include <algorithm>
#include <cmath>

namespace gpupool::arbiter {
namespace {

constexpr double kShortestSliceNs = 1'000'000;
constexpr u64 kShortestHoldNs = 2'000'000;  // nobody gives way earlier: changing costs 0.2 ms
constexpr u64 kAloneNs = 100'000'000;       // a lease that nobody else wants is made so long again and again
constexpr u64 kAwayNs = 1'000'000;          // whoever wanted nothing for so long may interrupt
constexpr u64 kNothingLeftNs = 1'000'000'000;  // without a share, and nothing is left: a turn so often
constexpr u64 kNothingLeftParts = 100;         // and no more than this part of the time
constexpr double kNothingLeftSliceNs = 2'000'000;
// Debts are paid for so long at most, and waiting is made good for so long.
constexpr double kLongestDebtNs = 30e9;
constexpr double kLongestClaimNs = 1e9;
constexpr double kLongestHardClaimNs = 0.1e9;
constexpr double kLeastDebtNs = 0.1e9;
constexpr double kPaybackWithoutShare = 0.1;

}  // namespace

void Scheduler::set_tenants(const std::vector<Tenant>& tenants, u64 now_ns) {
  charge(now_ns);
  const u64 holder = holder_ == kNobody ? 0 : tenants_[holder_].id;
  std::vector<Account> accounts(tenants.size());
  std::vector<Signals> heard(tenants.size());
  holder_ = kNobody;
  for (size_t i = 0; i < tenants.size(); ++i) {
    const auto same = [&](const Tenant& one) { return one.id == tenants[i].id; };
    const auto known = std::ranges::find_if(tenants_, same);
    if (known != tenants_.end()) {
      accounts[i] = accounts_[static_cast<size_t>(known - tenants_.begin())];
      heard[i] = heard_[static_cast<size_t>(known - tenants_.begin())];
    } else {
      accounts[i].idle_since_ns = accounts[i].ended_ns = now_ns;
    }
    if (tenants[i].id == holder) holder_ = i;
  }
  if (holder_ == kNobody) phase_ = Phase::nobody;  // its last session has ended, and its work with it
  tenants_ = tenants;
  accounts_ = std::move(accounts);
  heard_ = std::move(heard);
  arbitrates_ = must_arbitrate(tenants_);
  if (!arbitrates_) {
    phase_ = Phase::nobody;
    holder_ = kNobody;
  }
  divide_time(now_ns);
}

bool Scheduler::wants(size_t tenant) const {
  return heard_[tenant].wants || heard_[tenant].busy || (tenant == holder_ && !lingers_);
}

bool Scheduler::is_hard(size_t tenant) const {
  return tenants_[tenant].policy == pages::SharePolicy::hard && tenants_[tenant].share_percent != 0;
}

bool Scheduler::others_want() const {
  for (size_t i = 0; i < tenants_.size(); ++i)
    if (i != holder_ && heard_[i].wants) return true;
  return false;
}

double Scheduler::lag_ns(size_t tenant) const {
  const Account& account = accounts_[tenant];
  return account.fraction > 0 ? account.credit_ns / account.fraction : -kLongestDebtNs * 2;
}

double Scheduler::swing_ns(size_t tenant) const {
  const double fraction = accounts_[tenant].fraction;
  return fraction * (1 - fraction) * period_ns_ / 2;
}

u64 Scheduler::slice_ns(size_t tenant) const {
  const Account& account = accounts_[tenant];
  const double fraction = account.fraction;
  if (fraction <= 0) return static_cast<u64>(kNothingLeftSliceNs);
  const double even = fraction * period_ns_;
  if (fraction > 0.999) return static_cast<u64>(2 * even);
  // Until its credit is where it stands at the end of an even turn. Whoever is no better off than the others
  // and still the next one gets at least half a turn.
  const double least = std::max(kShortestSliceNs, is_hard(tenant) ? 0 : even / 2);
  const double slice = (account.credit_ns + swing_ns(tenant)) / (1 - fraction);
  return static_cast<u64>(std::clamp(slice, least, std::max(least, 2 * even)));
}

u64 Scheduler::eligible_ns(size_t tenant, u64 now_ns) const {
  const Account& account = accounts_[tenant];
  if (!heard_[tenant].wants) return kNever;
  if (account.fraction <= 0)
    return account.ended_ns + std::max(kNothingLeftNs, kNothingLeftParts * account.length_ns);
  if (!is_hard(tenant)) return now_ns;
  const double lacking = swing_ns(tenant) / 2 - account.credit_ns;
  const u64 earned_ns = lacking <= 0 ? now_ns : now_ns + static_cast<u64>(lacking / account.fraction) + 1;
  return heard_[tenant].busy ? std::min(earned_ns, account.ended_ns + kNothingLeftNs) : earned_ns;
}

bool Scheduler::is_due(size_t tenant, u64 now_ns) const {
  const Account& account = accounts_[tenant];
  if (eligible_ns(tenant, now_ns) > now_ns) return false;
  return account.fraction <= 0 || (heard_[tenant].busy && now_ns >= account.ended_ns + kNothingLeftNs);
}

size_t Scheduler::next(u64 now_ns) const {
  size_t best = kNobody;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    if (eligible_ns(i, now_ns) > now_ns) continue;
    if (is_due(i, now_ns)) return i;  // once a second: not to be put off
    if (best == kNobody || lag_ns(i) > lag_ns(best)) best = i;
  }
  return best;
}

// For the time since the last charge, by what was heard and decided then.
void Scheduler::charge(u64 now_ns) {
  const auto passed = static_cast<double>(now_ns - std::min(now_ns, charged_ns_));
  charged_ns_ = std::max(now_ns, charged_ns_);
  if (!arbitrates_) return;
  for (size_t i = 0; i < accounts_.size(); ++i) {
    Account& account = accounts_[i];
    const double share = tenants_[i].share_percent / 100.0;
    const bool holds = i == holder_ && !lingers_;
    if (wants(i)) account.credit_ns += account.fraction * passed;
    // Work that goes on beside the holder's has half of the GPU, by the driver's slices.
    const double used = holds ? passed : heard_[i].busy ? passed / 2 : 0;
    account.credit_ns -= used;
    account.used_ns += used;
    const double part = std::max(account.fraction, share);
    if (!wants(i) || (wanting_.size() == 1 && !is_hard(i))) {
      // Nobody waits for it: debts are paid by time, and idleness is no claim.
      const double rate = tenants_[i].share_percent == 0 ? kPaybackWithoutShare : share;
      const double most = part * (1 - part) * period_ns_ / 2;
      account.credit_ns = std::min(account.credit_ns + rate * passed, most);
    }
    const double claim = std::min(part * kLongestClaimNs, is_hard(i) ? kLongestHardClaimNs : kLongestClaimNs);
    account.credit_ns = std::clamp(account.credit_ns, -std::max(part * kLongestDebtNs, kLeastDebtNs), claim);
  }
}

void Scheduler::hear(u64 now_ns, const std::vector<Signals>& heard) {
  for (size_t i = 0; i < tenants_.size(); ++i) {
    Account& account = accounts_[i];
    const bool wanted = heard_[i].wants || heard_[i].busy;
    const bool wants = heard[i].wants || heard[i].busy;
    if (wanted && !wants) account.idle_since_ns = now_ns;
    if (!wanted && heard[i].wants && now_ns - account.idle_since_ns >= kAwayNs) account.woke = true;
    if (!heard[i].busy) account.overran = false;
  }
  heard_ = heard;
}

void Scheduler::divide_time(u64 now_ns) {
  std::vector<size_t> wanting;
  std::vector<Tenant> who;
  for (size_t i = 0; i < tenants_.size(); ++i)
    if (wants(i)) {
      wanting.push_back(i);
      who.push_back(tenants_[i]);
    }
  const std::vector<double> fractions = divide(who);
  for (Account& account : accounts_) account.fraction = 0;
  for (size_t i = 0; i < wanting.size(); ++i) accounts_[wanting[i]].fraction = fractions[i];
  period_ns_ = static_cast<double>(arbiter::period_ns(fractions));
  const bool changed = wanting != wanting_;
  wanting_ = std::move(wanting);
  // A lease was given for as long as those allowed who wanted one then.
  if (changed && phase_ == Phase::held && others_want())
    end_ns_ = std::min(end_ns_, now_ns + slice_ns(holder_));
}

// Whether the holder has to stop before its end, for one that has been waiting too long or has just come.
bool Scheduler::gives_way(u64 now_ns) const {
  if (now_ns - granted_ns_ < kShortestHoldNs) return false;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    if (i == holder_ || eligible_ns(i, now_ns) > now_ns || accounts_[i].fraction <= 0) continue;
    const double ahead = lag_ns(i) - lag_ns(holder_);
    if (ahead > period_ns_ || (accounts_[i].woke && accounts_[i].credit_ns > 0 && ahead > 0)) return true;
  }
  return false;
}

void Scheduler::grant(size_t tenant, u64 now_ns) {
  phase_ = Phase::held;
  holder_ = tenant;
  lingers_ = false;
  ++number_;
  granted_ns_ = now_ns;
  end_ns_ = now_ns + slice_ns(tenant);
  accounts_[tenant].woke = false;
}

void Scheduler::shut(u64 now_ns) {
  phase_ = Phase::shut;
  shut_ns_ = now_ns;
}

void Scheduler::release(u64 now_ns) {
  Account& account = accounts_[holder_];
  account.ended_ns = now_ns;
  account.length_ns = now_ns - granted_ns_;
  phase_ = Phase::nobody;
  holder_ = kNobody;
  lingers_ = false;
}

bool Scheduler::go_on_held(u64 now_ns) {
  const Signals& signals = heard_[holder_];
  const bool over = !signals.busy && (!signals.wants || signals.done);
  const bool others = others_want();
  const bool capped = is_hard(holder_);
  lingers_ = over && !signals.wants && !others && !capped;
  if (lingers_) {
    end_ns_ = kNever;
    return false;
  }
  if (over || (others && gives_way(now_ns))) {
    shut(now_ns);
    return true;
  }
  if (!others && !capped) {
    if (end_ns_ < now_ns + kAloneNs / 2 || end_ns_ > now_ns + kAloneNs) end_ns_ = now_ns + kAloneNs;
    return false;
  }
  if (now_ns < end_ns_) return false;
  if (!capped && accounts_[holder_].fraction > 0) {
    // It would be the next one again: then it need not drain.
    bool better = false;
    for (size_t i = 0; i < tenants_.size(); ++i)
      better = better || (i != holder_ && eligible_ns(i, now_ns) <= now_ns &&
                          (is_due(i, now_ns) || lag_ns(i) > lag_ns(holder_)));
    if (!better) {
      end_ns_ = now_ns + slice_ns(holder_);
      return false;
    }
  }
  shut(now_ns);
  return true;
}

bool Scheduler::go_on_shut(u64 now_ns) {
  Account& account = accounts_[holder_];
  if (heard_[holder_].busy) {
    // Whoever has overrun once is not waited for again until it has drained: its work may be endless.
    if (!account.overran && now_ns < shut_ns_ + kDrainNs) return false;
    account.overran = true;
  }
  release(now_ns);
  return true;
}

u64 Scheduler::next_look_ns(u64 now_ns) const {
  u64 look = kNever;
  if (phase_ == Phase::shut) return std::max(now_ns + 1, shut_ns_ + kDrainNs);
  for (size_t i = 0; i < tenants_.size(); ++i)
    if (i != holder_) look = std::min(look, std::max(now_ns + 1, eligible_ns(i, now_ns)));
  if (phase_ == Phase::nobody || lingers_) return look;
  const bool alone = !others_want() && !is_hard(holder_);
  u64 end = alone ? end_ns_ - kAloneNs / 2 : end_ns_;
  // Somebody may be let in then.
  if (look != kNever && now_ns < granted_ns_ + kShortestHoldNs)
    end = std::min(end, granted_ns_ + kShortestHoldNs);
  else if (look != kNever)
    end = std::min(end, now_ns + kShortestHoldNs);
  return std::max(end, now_ns + 1);
}

u64 Scheduler::step(u64 now_ns, const std::vector<Signals>& heard) {
  charge(now_ns);
  hear(now_ns, heard);
  if (!arbitrates_) return kNever;
  divide_time(now_ns);
  if (phase_ == Phase::held && go_on_held(now_ns)) return now_ns;
  if (phase_ == Phase::shut && !go_on_shut(now_ns)) return next_look_ns(now_ns);
  if (phase_ == Phase::nobody) {
    divide_time(now_ns);
    if (const size_t tenant = next(now_ns); tenant != kNobody) grant(tenant, now_ns);
  }
  return next_look_ns(now_ns);
}

Lease Scheduler::lease(size_t tenant) const {
  if (tenant != holder_ || phase_ != Phase::held) return Lease{};
  return Lease{true, number_, end_ns_};
}

}  // namespace gpupool::arbiter
