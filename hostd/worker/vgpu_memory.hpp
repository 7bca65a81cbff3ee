// The memory of one vGPU as one of its sessions sees it: what the session has taken, what all sessions of the
// vGPU have taken, and how much they may. Bytes are taken before the driver is asked for them.
//
// Invariants: the sum over all sessions never goes above the limit through reserve(), whatever other
// processes do at the same time; a request that fits while the others hold still is never refused; and a
// process that dies at any point leaves a sum that is right once hostd has cleared its row. The limit is read
// at each reservation: it may change at any time, also to below what is taken.
//
// One thread a process: the dispatcher's.
#pragma once

#include <string>

#include "hostd/pages/account_page.hpp"
#include "hostd/pages/quota_page.hpp"

namespace gpupool::worker {

class VgpuMemory {
 public:
  // Counts for itself and limits nothing: a worker that was given no pages.
  VgpuMemory() = default;
  VgpuMemory(const pages::QuotaPage& quota, u32 vgpu_row, pages::AccountPage& account, u32 account_row);

  // Takes so many bytes; false, and nothing is taken, when that would be above the limit.
  bool reserve(u64 bytes);
  // Takes what is there already, above the limit or not.
  void take(u64 bytes);
  void give_back(u64 bytes);

  [[nodiscard]] u64 limit_bytes() const;  // 0: none
  [[nodiscard]] u64 own_bytes() const { return own_; }
  [[nodiscard]] u64 all_bytes() const;  // of all sessions of the vGPU

 private:
  struct Look;
  // All rows at one moment, as far as that can be known.
  [[nodiscard]] Look look() const;
  void publish();

  const pages::QuotaPage::Vgpu* quota_ = nullptr;
  pages::AccountPage* account_ = nullptr;
  pages::AccountPage::Row* row_ = nullptr;
  u64 own_ = 0;  // the row is only written from it: nobody else's mistake stays there
};

// Maps the pages that hostd gave; false with `error`. The quota page cannot be written through the mapping.
bool map_vgpu_memory(int quota_fd, u32 vgpu_row, int account_fd, u32 account_row, VgpuMemory& memory,
                     std::string& error);

}  // namespace gpupool::worker
