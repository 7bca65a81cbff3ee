// The page in which a worker tells hostd what its session uses, for NVML in the guest, and what it has done,
// for the metrics of the host. The worker only writes, hostd (hostd/adapters/usage_page.py) only reads,
// whenever it is asked; a later hostd finds the page again.
#pragma once

#include <atomic>

#include "wire/cpp/device_info.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::worker {

struct UsagePage {
  static constexpr u64 kBytes = 4096;
  static constexpr u32 kMagic = 0x4547'4155;    // "UAGE"
  static constexpr u64 kSampleNs = 20'000'000;  // one sample of Device::samples
  static constexpr u32 kSamples = 50;           // how many hostd looks at: one second

  struct alignas(64) Device {
    std::atomic<u64> memory_bytes;
    std::atomic<u64> slot;         // CLOCK_MONOTONIC / kSampleNs of the newest sample
    std::atomic<u64> samples;      // bit n: work was outstanding n samples before `slot`
    std::atomic<u32> outstanding;  // what holds for the time since `slot`
  };

  // Since the session began. All zero in the page of a worker that is older than these.
  struct alignas(64) Counters {
    std::atomic<u64> messages;  // executed
    std::atomic<u64> answers;   // that the client waited for
    std::atomic<u64> launches;
    std::atomic<u64> to_device_bytes;  // of copies between host memory and a GPU
    std::atomic<u64> from_device_bytes;
    std::atomic<u64> busy_ns;            // in which the dispatcher was executing messages
    std::atomic<u64> zero_copy_bytes;    // sent to the client by reference (wire/cpp/zero_copy.hpp)
    std::atomic<u64> zero_copy_refused;  // sends that were copies because the kernel had no room
  };

  alignas(64) std::atomic<u32> magic;
  std::atomic<u32> devices;
  Device device[wire::kMaxDevices];
  Counters counters;
};
static_assert(sizeof(UsagePage::Device) == 64 && sizeof(UsagePage::Counters) == 64 &&
              sizeof(UsagePage) <= UsagePage::kBytes);

// What handlers count, in memory of the dispatcher's own: it copies it to the page now and then, so that a
// message costs an addition and no line that hostd reads.
struct Tally {
  u64 answers = 0;
  u64 launches = 0;
  u64 to_device_bytes = 0;
  u64 from_device_bytes = 0;
};

// Maps the page that hostd gave. Without one (-1) or if it cannot be mapped, which is logged, the page is our
// own and nobody reads it: a session does not fail for want of figures. Never null.
UsagePage* open_usage_page(int fd, u64 devices);

}  // namespace gpupool::worker
