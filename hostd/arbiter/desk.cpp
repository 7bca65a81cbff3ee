#include "hostd/arbiter/desk.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "hostd/worker/log.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::arbiter {
namespace {

using pages::LeasePage;
using pages::LeaseState;
using pages::QuotaPage;

constexpr u64 kLookNs = 250'000'000;     // at the page and at the workers, when nothing is said
constexpr u64 kShortWaitNs = 1'000'000;  // where not all bells can be heard

void* map(int folder, const std::string& name, int protection, u64 bytes, std::string& error) {
  const int flags = (protection & PROT_WRITE) != 0 ? O_RDWR : O_RDONLY;
  const int file = openat(folder, name.c_str(), flags | O_CLOEXEC | O_NOFOLLOW);
  void* at = MAP_FAILED;
  struct stat facts {};
  if (file >= 0 && fstat(file, &facts) == 0 && static_cast<u64>(facts.st_size) >= bytes)
    at = mmap(nullptr, bytes, protection, MAP_SHARED, file, 0);
  if (at == MAP_FAILED) error = name + ": " + (file < 0 ? std::strerror(errno) : "no page");
  if (file >= 0) close(file);
  return at == MAP_FAILED ? nullptr : at;
}

// Whether that process is gone, or its pid another's by now (proc(5), fields 3 and 22 of stat).
bool has_ended(u32 pid, u64 start_ticks) {
  if (pid == 0) return false;  // it is being started
  const std::string name = "/proc/" + std::to_string(pid) + "/stat";
  const int file = open(name.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return errno == ENOENT;
  char text[512];
  const ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return true;
  text[length] = 0;
  const char* at = std::strrchr(text, ')');  // the name before it may hold anything
  if (at == nullptr || at[1] != ' ') return false;
  if (at[2] == 'Z' || at[2] == 'X') return true;
  for (int field = 2; field < 22 && at != nullptr; ++field) at = std::strchr(at + 1, ' ');
  return at != nullptr && start_ticks != 0 && std::strtoull(at, nullptr, 10) != start_ticks;
}

}  // namespace

Desk::~Desk() {
  for (Seat& seat : seats_) rise(seat);
}

bool Desk::open(std::string& error) {
  quota_ = static_cast<const QuotaPage*>(map(folder_, "quota", PROT_READ, QuotaPage::kBytes, error));
  if (quota_ == nullptr) return false;
  if (quota_->magic.load(std::memory_order_acquire) == QuotaPage::kMagic &&
      quota_->version.load(std::memory_order_relaxed) == QuotaPage::kVersion)
    return true;
  error = "quota: not a page of this version";
  return false;
}

bool Desk::sit(Seat& seat) {
  std::string error;
  const std::string name = std::to_string(seat.session.id) + ".lease";
  seat.page = static_cast<LeasePage*>(map(folder_, name, PROT_READ | PROT_WRITE, LeasePage::kBytes, error));
  if (seat.page == nullptr) {
    // Once: it is looked for again and again.
    if (std::ranges::find(pageless_, seat.session.id) == pageless_.end())
      worker::log(worker::LogLevel::warning, "a session without a lease page", error);
    return false;
  }
  seat.page->grant.version.store(LeasePage::kVersion, std::memory_order_relaxed);
  seat.page->grant.magic.store(LeasePage::kMagic, std::memory_order_release);
  return true;
}

void Desk::rise(Seat& seat) {
  if (seat.page != nullptr) munmap(seat.page, LeasePage::kBytes);
  seat.page = nullptr;
}

void Desk::read_page() {
  std::vector<Tenant> tenants;
  std::vector<Seat> seats;
  std::vector<u64> pageless;
  for (const QuotaPage::Session& row : quota_->session) {
    Seat seat;
    seat.session.id = row.id.load(std::memory_order_acquire);
    const u32 vgpu = row.vgpu.load(std::memory_order_relaxed);
    const u32 pid = row.worker_pid.load(std::memory_order_relaxed);
    const u64 ticks = row.worker_start_ticks.load(std::memory_order_relaxed);
    // hostd takes the row of a dead worker away; it may itself be away.
    if (seat.session.id == 0 || vgpu >= QuotaPage::kVgpus || has_ended(pid, ticks)) continue;
    const QuotaPage::Vgpu& quota = quota_->vgpu[vgpu];
    const Tenant tenant{quota.id.load(std::memory_order_acquire),
                        std::min(quota.compute_percent.load(std::memory_order_relaxed), 100u),
                        quota.policy.load(std::memory_order_relaxed)};
    if (tenant.id == 0) continue;
    const auto known =
        std::ranges::find_if(seats_, [&](const Seat& one) { return one.session.id == seat.session.id; });
    if (known != seats_.end()) {
      std::swap(seat, *known);
    } else if (!sit(seat)) {
      pageless.push_back(seat.session.id);
      continue;
    }
    const auto place = std::ranges::find_if(tenants, [&](const Tenant& one) { return one.id == tenant.id; });
    seat.session.tenant = static_cast<size_t>(place - tenants.begin());
    if (place == tenants.end()) tenants.push_back(tenant);
    seats.push_back(seat);
  }
  for (Seat& left : seats_) rise(left);
  seats_ = std::move(seats);
  pageless_ = std::move(pageless);
  tenants_ = std::move(tenants);
}

bool Desk::refresh() {
  const u64 now = wire::monotonic_ns();
  const u32 changed = quota_->changed.load(std::memory_order_acquire);
  if (read_ && changed == changed_ && now - looked_ns_ < kLookNs) return false;
  looked_ns_ = now;
  changed_ = changed;
  read_ = true;
  const std::vector<Tenant> before = tenants_;
  const std::vector<Session> sessions_before = sessions();
  read_page();
  return before != tenants_ || sessions_before != sessions();
}

std::vector<Session> Desk::sessions() const {
  std::vector<Session> sessions;
  for (const Seat& seat : seats_) sessions.push_back(seat.session);
  return sessions;
}

std::vector<Signals> Desk::listen() {
  std::vector<Signals> heard;
  for (Seat& seat : seats_) {
    // First: what is said from here on rings again.
    seat.bell = seat.page->want.bell.load(std::memory_order_seq_cst);
    const LeasePage::Want& want = seat.page->want;
    const bool wants = want.wants.load(std::memory_order_seq_cst) != 0;
    const bool busy = want.busy.load(std::memory_order_seq_cst) != 0;
    const u64 done = want.done.load(std::memory_order_seq_cst);
    heard.push_back(
        Signals{wants, busy, wants && done == seat.page->grant.number.load(std::memory_order_relaxed)});
  }
  return heard;
}

void Desk::say(LeasePage& page, LeaseState state, const Lease& lease, u64 now_ns) {
  LeasePage::Grant& grant = page.grant;
  grant.beat_ns.store(now_ns, std::memory_order_relaxed);
  if (state == LeaseState::held) {
    grant.end_ns.store(lease.end_ns, std::memory_order_relaxed);
    grant.number.store(lease.number, std::memory_order_relaxed);
  }
  if (grant.state.load(std::memory_order_relaxed) == state) return;
  grant.state.store(state, std::memory_order_seq_cst);
  grant.turn.fetch_add(1, std::memory_order_seq_cst);
  wire::futex_wake(grant.turn);
}

void Desk::tell(const Turns& turns, u64 now_ns) {
  const Scheduler& scheduler = turns.scheduler();
  arbitrates_ = scheduler.arbitrates();
  for (size_t i = 0; i < seats_.size(); ++i) {
    const Lease lease = turns.lease(i);
    const LeaseState state = !arbitrates_ ? LeaseState::free
                             : lease.held ? LeaseState::held
                                          : LeaseState::shut;
    LeasePage& page = *seats_[i].page;
    page.grant.used_ns.store(scheduler.used_ns(seats_[i].session.tenant), std::memory_order_relaxed);
    say(page, state, lease, now_ns);
  }
}

void Desk::wait(u64 timeout_ns) {
  const u64 limit = std::min(timeout_ns, arbitrates_ ? LeasePage::kBeatNs : kLookNs);
  if (waits_on_many_ && seats_.size() + 1 <= wire::kMostWaits) {
    std::vector<wire::WaitOn> words = {wire::wait_on(quota_->changed, changed_)};
    for (const Seat& seat : seats_) words.push_back(wire::wait_on(seat.page->want.bell, seat.bell));
    waits_on_many_ = wire::futex_wait_any(words.data(), static_cast<u32>(words.size()), limit);
    if (waits_on_many_) return;
  }
  wire::futex_wait_ns(quota_->changed, changed_, std::min(limit, kShortWaitNs));
}

void Desk::leave() {
  for (const Seat& seat : seats_) say(*seat.page, LeaseState::free, Lease{}, wire::monotonic_ns());
}

}  // namespace gpupool::arbiter
