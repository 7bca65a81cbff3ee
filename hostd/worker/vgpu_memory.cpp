#include "hostd/worker/vgpu_memory.hpp"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {

using pages::AccountPage;
using pages::QuotaPage;

// For how long a request waits for others to make up their minds. A process that is in the middle of
// reserving is done in well under a microsecond, unless it does not get a core; one that was stopped there
// costs the refused requests of its own vGPU so long.
constexpr u64 kPatienceNs = 50'000'000;
constexpr u64 kFirstPauseNs = 1'000;
constexpr u64 kLongestPauseNs = 1'000'000;

u64 add_saturated(u64 a, u64 b) {
  u64 sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? ~u64{0} : sum;
}

void pause_ns(u64 ns) {
  const timespec time{0, static_cast<long>(ns)};
  nanosleep(&time, nullptr);
}

template <typename Page>
Page* map_page(int fd, int protection, const char* name, std::string& error) {
  struct stat file {};
  // A shorter file would end this process at the first access.
  if (fstat(fd, &file) != 0 || file.st_size < static_cast<off_t>(Page::kBytes)) {
    error = std::string("the ") + name + " page is not " + std::to_string(Page::kBytes) + " bytes long";
    return nullptr;
  }
  void* mapped = mmap(nullptr, Page::kBytes, protection, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) {
    error = std::string("cannot map the ") + name + " page: " + std::strerror(errno);
    return nullptr;
  }
  auto* page = static_cast<Page*>(mapped);
  if (page->magic.load(std::memory_order_acquire) != Page::kMagic ||
      page->version.load(std::memory_order_acquire) != Page::kVersion) {
    error = std::string("the ") + name + " page is not one of version " + std::to_string(Page::kVersion);
    munmap(mapped, Page::kBytes);
    return nullptr;
  }
  return page;
}

}  // namespace

struct VgpuMemory::Look {
  u64 sum = 0;
  u64 mixed = 0;        // tells two looks apart
  bool settled = true;  // nobody else was in the middle of reserving
};

VgpuMemory::VgpuMemory(const QuotaPage& quota, u32 vgpu_row, AccountPage& account, u32 account_row)
    : quota_(&quota.vgpu[vgpu_row]), account_(&account), row_(&account.row[account_row]) {
  row_->reserving.store(0, std::memory_order_relaxed);  // of a session that had the row before
  publish();
}

void VgpuMemory::publish() {
  if (row_ != nullptr) row_->bytes.store(own_, std::memory_order_seq_cst);
}

VgpuMemory::Look VgpuMemory::look() const {
  Look seen;
  for (const AccountPage::Row& row : account_->row) {
    if (&row == row_) continue;
    const u32 before = row.reserving.load(std::memory_order_seq_cst);
    const u64 bytes = row.bytes.load(std::memory_order_seq_cst);
    const u32 after = row.reserving.load(std::memory_order_seq_cst);
    if (before != 0 || after != 0) seen.settled = false;
    seen.sum = add_saturated(seen.sum, bytes);
    seen.mixed = seen.mixed * 0x9e37'79b9'7f4a'7c15 + bytes;
  }
  seen.sum = add_saturated(seen.sum, own_);
  return seen;
}

// Two processes that reserve at one moment: each stores its addition before it reads the other's, all in one
// order (seq_cst), so at least one of them sees both. Both may; whoever then sees the other still undecided,
// or its row changed, tries again. A request that is refused by rows that were settled, twice the same, does
// not fit.
bool VgpuMemory::reserve(u64 bytes) {
  // A sum that was cut short could not be given back: what the session has would be forgotten with it.
  if (bytes > ~u64{0} - own_) return false;
  u64 deadline = 0;
  u64 pause = kFirstPauseNs;
  while (true) {
    if (limit_bytes() == 0) {
      take(bytes);
      return true;
    }
    Look seen = look();
    // What cannot fit disturbs nobody.
    if (add_saturated(seen.sum, bytes) <= limit_bytes()) {
      row_->reserving.store(1, std::memory_order_seq_cst);
      own_ += bytes;
      publish();
      seen = look();
      const bool fits = seen.sum <= limit_bytes();
      if (!fits) {
        own_ -= bytes;
        publish();
      }
      row_->reserving.store(0, std::memory_order_seq_cst);
      if (fits) return true;
    }
    const Look again = look();
    if (seen.settled && again.settled && seen.mixed == again.mixed &&
        add_saturated(again.sum, bytes) > limit_bytes())
      return false;
    const u64 now = wire::monotonic_ns();
    if (deadline == 0) deadline = now + kPatienceNs;
    if (now >= deadline) return false;
    // Of different length in every process, so that two do not meet again and again.
    pause_ns(pause + now % pause);
    if (pause < kLongestPauseNs) pause *= 2;
  }
}

void VgpuMemory::take(u64 bytes) {
  own_ = add_saturated(own_, bytes);
  publish();
}

void VgpuMemory::give_back(u64 bytes) {
  own_ -= bytes < own_ ? bytes : own_;
  publish();
}

u64 VgpuMemory::limit_bytes() const {
  return quota_ == nullptr ? 0 : quota_->memory_bytes.load(std::memory_order_relaxed);
}

u64 VgpuMemory::all_bytes() const {
  return account_ == nullptr ? own_ : look().sum;
}

bool map_vgpu_memory(int quota_fd, u32 vgpu_row, int account_fd, u32 account_row, VgpuMemory& memory,
                     std::string& error) {
  if (vgpu_row >= QuotaPage::kVgpus || account_row >= AccountPage::kSessions) {
    error = "a row that its page does not have";
    return false;
  }
  const auto* quota = map_page<QuotaPage>(quota_fd, PROT_READ, "quota", error);
  if (quota == nullptr) return false;
  auto* account = map_page<AccountPage>(account_fd, PROT_READ | PROT_WRITE, "account", error);
  if (account == nullptr) return false;
  memory = VgpuMemory(*quota, vgpu_row, *account, account_row);
  return true;
}

}  // namespace gpupool::worker
