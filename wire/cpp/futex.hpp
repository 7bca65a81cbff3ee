// Waiting on memory between processes. A futex looks at 32 bits; on our 64-bit counters it is the low half
// (x86-64 is little-endian), which changes with every store that matters.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

// Sleeps while *address == expected, at most that long. Returns for any reason: the caller looks again.
inline void futex_wait_ns(const std::atomic<u32>& address, u32 expected, u64 timeout_ns) {
  const timespec timeout{static_cast<time_t>(timeout_ns / 1'000'000'000),
                         static_cast<long>(timeout_ns % 1'000'000'000)};
  syscall(SYS_futex, &address, FUTEX_WAIT, expected, &timeout, nullptr, 0);
}
inline void futex_wait(const std::atomic<u32>& address, u32 expected, u32 timeout_ms) {
  futex_wait_ns(address, expected, u64{timeout_ms} * 1'000'000);
}
inline void futex_wait(const std::atomic<u64>& address, u64 expected, u32 timeout_ms) {
  futex_wait(reinterpret_cast<const std::atomic<u32>&>(address), static_cast<u32>(expected), timeout_ms);
}

template <typename T>
void futex_wake(const std::atomic<T>& address) {
  syscall(SYS_futex, &address, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// One of several words to wait on: struct futex_waitv of linux/futex.h in Linux 5.16, which is newer than
// some build machines' headers.
struct WaitOn {
  u64 value = 0;
  u64 address = 0;
  u32 flags = 2;  // 32 bits, shared between processes
  u32 reserved = 0;
};
inline constexpr u32 kMostWaits = 128;  // FUTEX_WAITV_MAX

inline WaitOn wait_on(const std::atomic<u32>& word, u32 expected) {
  return WaitOn{.value = expected, .address = reinterpret_cast<u64>(&word)};
}

inline u64 monotonic_ns();

// Sleeps while all of them are as expected, at most that long. False where the kernel cannot do this.
inline bool futex_wait_any(const WaitOn* words, u32 count, u64 timeout_ns) {
  constexpr long kCall = 449;
  const u64 end = monotonic_ns() + timeout_ns;
  const timespec until{static_cast<time_t>(end / 1'000'000'000), static_cast<long>(end % 1'000'000'000)};
  return syscall(kCall, words, count, 0, &until, CLOCK_MONOTONIC) >= 0 || (errno != ENOSYS && errno != EPERM);
}

inline u64 monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000u + static_cast<u64>(now.tv_nsec);
}

// Waiting for something that usually takes microseconds: spin with pauses first where there are cores to
// spare, then sleep in growing steps. Never longer than `longest_us` at a time, so the caller's conditions
// are looked at.
class Backoff {
 public:
  explicit Backoff(u32 spin_us, u32 longest_us)
      : spin_ns_(spare_cores() ? u64{spin_us} * 1000 : 0), longest_us_(longest_us) {}

  // One step. True while still in the spinning phase.
  bool step() {
    if (spin()) return true;
    const timespec nap{0, static_cast<long>(nap_us_) * 1000};
    nanosleep(&nap, nullptr);
    nap_us_ = nap_us_ * 2 < longest_us_ ? nap_us_ * 2 : longest_us_;
    return false;
  }
  // The same without naps: false, at once, when the spinning phase is over.
  bool spin() {
    if (start_ == 0) start_ = monotonic_ns();
    if (spin_ns_ == 0 || monotonic_ns() - start_ >= spin_ns_) return false;
    for (int i = 0; i < 32; ++i) __builtin_ia32_pause();
    return true;
  }
  [[nodiscard]] u64 elapsed_ns() const { return start_ == 0 ? 0 : monotonic_ns() - start_; }

  // On one or two cores spinning only takes time from the one we wait for.
  static bool spare_cores() {
    static const bool spare = sysconf(_SC_NPROCESSORS_ONLN) > 2;
    return spare;
  }

 private:
  u64 spin_ns_;
  u64 start_ = 0;
  u32 nap_us_ = 10;
  u32 longest_us_;
};

}  // namespace gpupool::wire
