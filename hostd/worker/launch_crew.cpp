#include "hostd/worker/launch_crew.hpp"

#include <sys/prctl.h>

#include <algorithm>
#include <thread>

#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {

constexpr u64 kSpinNs = 100'000;  // covers the gaps inside a burst; between bursts its threads sleep
constexpr u32 kSleepMs = 1000;
// Launches with nothing between them before a burst begins. A program with an event or a copy behind each few
// launches only gets slower with the crew (JAX: 1.3 instead of 0.8 of native).
constexpr u64 kFirstInRow = 32;
// Launches for each wait that make a burst worth going on: a launch that another thread makes saves the
// dispatcher at most the 3.5 us that a wait costs it, and the driver lets threads in one after the other for
// part of it.
constexpr u64 kWorthwhile = 8;

CUresult launch(const DriverApi& driver, ReadyLaunch& ready) {
  size_t bytes = ready.bytes;
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, ready.parameters, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                   CU_LAUNCH_PARAM_END};
  return driver.cuLaunchKernel(ready.function, ready.grid[0], ready.grid[1], ready.grid[2], ready.block[0],
                               ready.block[1], ready.block[2], ready.shared_bytes, ready.stream, nullptr,
                               bytes == 0 ? nullptr : extra);
}

}  // namespace

u64 LaunchCrew::backlog(const Member& member) {
  return member.pushed.load(std::memory_order_relaxed) - member.issued.load(std::memory_order_acquire);
}

bool LaunchCrew::pending(wire::Handle stream) const {
  if (!active_) return false;
  const Last& last = last_[stream.index()];
  return last.number != 0 && members_[last.member]->issued.load(std::memory_order_acquire) < last.number;
}

bool LaunchCrew::wants(wire::Handle stream, const wire::Slot& next, u64 next_ticket) {
  if (threads_ == 0 || stream.index() >= wire::kWords) return false;
  in_row_ = next_ticket == next_in_row_ ? in_row_ + 1 : 1;
  next_in_row_ = next_ticket + 1;
  if (active_) {  // in a burst the dispatcher had better not stop for a launch of its own
    // What comes next was written on another core: fetch it while this one is handed over. Not outside a
    // burst, where the client may be about to write there.
    for (u64 line = 0; line < sizeof next; line += 64)
      __builtin_prefetch(reinterpret_cast<const u8*>(&next) + line);
    return true;
  }
  // A look at what the client wrote, which decides nothing but who launches.
  return in_row_ >= kFirstInRow && next.sequence.load(std::memory_order_acquire) == next_ticket + 1 &&
         next.function == static_cast<u16>(wire::Function::cuLaunchKernel) &&
         next.stream.index() != stream.index();
}

void LaunchCrew::start(const DriverApi& driver) {
  last_.resize(wire::kWords);
  for (u32 i = 0; i < threads_; ++i) {
    members_.push_back(std::make_unique<Member>());
    // They live as long as the process, which ends by _exit().
    std::thread([this, &driver, member = members_.back().get()] { work(driver, *member); }).detach();
  }
}

ReadyLaunch& LaunchCrew::prepare(const DriverApi& driver, wire::Handle stream) {
  if (members_.empty()) start(driver);
  Last& last = last_[stream.index()];
  if (!pending(stream) && (last.number == 0 || backlog(*members_[last.member]) != 0)) {
    // Not where it was, since that one is busy with another stream's. The one that has least to do; each look
    // is at a line that another core writes.
    u64 fewest = ~u64{0};
    for (u32 i = 0; i < threads_ && fewest != 0; ++i) {
      const u64 waiting = backlog(*members_[i]);
      if (waiting < fewest) {
        fewest = waiting;
        last.member = i;
      }
    }
  }
  Member& member = *members_[last.member];
  const u64 pushed = member.pushed.load(std::memory_order_relaxed);
  if (pushed >= kPlaces) wait_issued(member, pushed - kPlaces + 1);
  ReadyLaunch& place = member.places[pushed % kPlaces];
  place.epoch = epoch_;
  return place;
}

void LaunchCrew::push(wire::Handle stream) {
  Last& last = last_[stream.index()];
  Member& member = *members_[last.member];
  last.number = member.pushed.load(std::memory_order_relaxed) + 1;
  active_ = true;
  ++burst_;
  // Stored before `sleeping` is read, as the member stores `sleeping` before it looks again.
  member.pushed.store(last.number, std::memory_order_seq_cst);
  if (member.sleeping.load(std::memory_order_seq_cst) != 0) wire::futex_wake(member.pushed);
}

void LaunchCrew::work(const DriverApi& driver, Member& member) {
  prctl(PR_SET_NAME, "gpupool-launch");
  u64 done = 0;
  u64 epoch = 0;
  CUcontext current = nullptr;
  u64 idle_since = wire::monotonic_ns();
  while (true) {
    if (member.pushed.load(std::memory_order_acquire) == done) {
      if (wire::Backoff::spare_cores() && wire::monotonic_ns() - idle_since < kSpinNs) {
        for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
        continue;
      }
      member.sleeping.store(1, std::memory_order_seq_cst);
      if (member.pushed.load(std::memory_order_seq_cst) == done)
        wire::futex_wait(member.pushed, done, kSleepMs);
      member.sleeping.store(0, std::memory_order_relaxed);
      continue;
    }
    ReadyLaunch& ready = member.places[done % kPlaces];
    CUresult result = CUDA_SUCCESS;
    if (ready.context != current || ready.epoch != epoch) {
      result = driver.cuCtxSetCurrent(ready.context);
      current = ready.context;
      epoch = ready.epoch;
    }
    if (result == CUDA_SUCCESS) result = launch(driver, ready);
    if (result != CUDA_SUCCESS) {
      CUresult none = CUDA_SUCCESS;
      error_.compare_exchange_strong(none, result, std::memory_order_acq_rel);
    }
    member.issued.store(++done, std::memory_order_release);
    idle_since = wire::monotonic_ns();
  }
}

bool LaunchCrew::all_issued() const {
  return std::ranges::all_of(members_, [](const auto& member) { return backlog(*member) == 0; });
}

void LaunchCrew::wait_issued(const Member& member, u64 number) const {
  wire::Backoff backoff(1000, 100);
  while (member.issued.load(std::memory_order_acquire) < number) backoff.step();
}

void LaunchCrew::settle(wire::Handle stream) {
  if (stream.index() < last_.size() && pending(stream)) {
    const Last& last = last_[stream.index()];
    wait_issued(*members_[last.member], last.number);
    if (burst_ < kWorthwhile * ++burst_waits_) settle_all();
  }
}

void LaunchCrew::settle_all() {
  for (const auto& member : members_) wait_issued(*member, member->pushed.load(std::memory_order_relaxed));
  burst_ = 0;
  burst_waits_ = 0;
  active_ = false;
}

CUresult LaunchCrew::take_error() {
  if (error_.load(std::memory_order_relaxed) == CUDA_SUCCESS) [[likely]]
    return CUDA_SUCCESS;
  return error_.exchange(CUDA_SUCCESS, std::memory_order_acq_rel);
}

}  // namespace gpupool::worker
