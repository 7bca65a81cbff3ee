// The page that says what each vGPU of one GPU may use. hostd writes it (hostd/adapters/quota_page.py),
// whenever a vGPU or a session comes, goes or is resized; the GPU's arbiter and the workers map it read-only.
// It is a file in hostd's state folder, so that an arbiter, a worker and a later hostd find it again.
//
// A row counts from the moment its `id` is stored (last, release) to the moment it is cleared (first). The
// row of a vGPU is not given to another while a session's row names it. After every change hostd adds one to
// `changed` and wakes it as a futex.
//
// What is in it: numbers only, no name of a tenant.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::pages {

enum class SharePolicy : u32 {
  elastic = 0,  // at least its share; more while others leave it idle
  hard = 1,     // its share and never more
};

struct QuotaPage {
  static constexpr u64 kBytes = 65536;
  static constexpr u32 kMagic = 0x544f'5551;  // "QUOT"
  static constexpr u32 kVersion = 1;
  static constexpr u32 kVgpus = 256;
  static constexpr u32 kSessions = 512;

  struct alignas(64) Vgpu {
    std::atomic<u64> id;               // 0: free row
    std::atomic<u64> memory_bytes;     // 0: not limited
    std::atomic<u32> compute_percent;  // 1 to 100; 0: none of its own, it takes what others leave
    std::atomic<SharePolicy> policy;
    std::atomic<u32> priority;  // 0 (lowest) to 9
    u32 reserved;
  };

  struct alignas(32) Session {
    std::atomic<u64> id;    // 0: free row
    std::atomic<u32> vgpu;  // its row above
    std::atomic<u32> worker_pid;
    std::atomic<u64> worker_start_ticks;  // field 22 of /proc/PID/stat
  };

  alignas(64) std::atomic<u32> magic;
  std::atomic<u32> version;
  std::atomic<u32> changed;
  Vgpu vgpu[kVgpus];
  Session session[kSessions];
};
static_assert(sizeof(QuotaPage::Vgpu) == 64 && sizeof(QuotaPage::Session) == 32 &&
              sizeof(QuotaPage) <= QuotaPage::kBytes);

}  // namespace gpupool::pages
