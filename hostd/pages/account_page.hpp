// How much device memory of one GPU the sessions of one vGPU use, a row a session. Only workers of that vGPU
// map it, each to write its own row and to read the others'; hostd makes it, gives out the rows, clears the
// row of a session that has ended, and reads the sum.
//
// To reserve: add to the own row, then sum all rows; a sum above QuotaPage::Vgpu::memory_bytes takes the
// addition back. So nothing is ever above the quota, and the death of a worker at any point leaves nothing
// wrong: its row is cleared as a whole. Two sessions that reserve at one moment may see each other's
// additions and both be refused where one would fit: a row says while its addition may still be taken back,
// and whoever is refused and sees such a row, or one that changed meanwhile, tries again for a bounded time.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::pages {

struct AccountPage {
  static constexpr u64 kBytes = 16384;
  static constexpr u32 kMagic = 0x4e55'4f43;  // "COUN"
  static constexpr u32 kVersion = 1;
  static constexpr u32 kSessions = 128;

  struct alignas(64) Row {
    std::atomic<u64> session;  // 0: free row
    std::atomic<u64> bytes;    // what its programs asked for
    // What the driver took besides (contexts), not counted in the quota. hostd writes it, as NVML measures.
    std::atomic<u64> overhead_bytes;
    std::atomic<u32> reserving;  // 1: `bytes` may still be taken back
  };

  alignas(64) std::atomic<u32> magic;
  std::atomic<u32> version;
  Row row[kSessions];
};
static_assert(sizeof(AccountPage::Row) == 64 && sizeof(AccountPage) <= AccountPage::kBytes);

}  // namespace gpupool::pages
