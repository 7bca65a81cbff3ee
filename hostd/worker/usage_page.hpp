// The page in which a worker tells hostd what its session uses, for NVML in the guest. The worker only
// writes, hostd (hostd/adapters/usage_page.py) only reads, whenever it is asked; a later hostd finds the page
// again.
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

  alignas(64) std::atomic<u32> magic;
  std::atomic<u32> devices;
  Device device[wire::kMaxDevices];
};
static_assert(sizeof(UsagePage::Device) == 64 && sizeof(UsagePage) <= UsagePage::kBytes);

// Maps the page that hostd gave. Without one (-1) or if it cannot be mapped, which is logged, the page is our
// own and nobody reads it: a session does not fail for want of figures. Never null.
UsagePage* open_usage_page(int fd, u64 devices);

}  // namespace gpupool::worker
