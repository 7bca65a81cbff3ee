// A vGPU's memory, shared by processes that reserve at the same time: never above the limit, never refused
// for nothing, and right after any of them is killed.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <random>
#include <thread>
#include <vector>

#include "hostd/worker/vgpu_memory.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {

using pages::AccountPage;
using pages::QuotaPage;

constexpr u64 kMib = 1u << 20;
constexpr u32 kVgpu = 7;

// Both pages, and what the processes of a test tell each other, in memory that they share.
struct Shared {
  alignas(64) u8 quota_bytes[QuotaPage::kBytes];
  alignas(64) u8 account_bytes[AccountPage::kBytes];
  std::atomic<u64> granted;  // by everybody; more than is really held never shows here
  std::atomic<u64> most;
  std::atomic<u64> grants;
  std::atomic<u64> refusals;
  std::atomic<u32> running;

  QuotaPage& quota() { return *reinterpret_cast<QuotaPage*>(quota_bytes); }
  AccountPage& account() { return *reinterpret_cast<AccountPage*>(account_bytes); }
  void limit(u64 bytes) { quota().vgpu[kVgpu].memory_bytes.store(bytes); }
  VgpuMemory session(u32 row) { return {quota(), kVgpu, account(), row}; }
  u64 sum() {
    u64 all = 0;
    for (AccountPage::Row& row : account().row) all += row.bytes;
    return all;
  }
};

class Pages {
 public:
  Pages()
      : shared_(static_cast<Shared*>(
            mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~Pages() { munmap(shared_, sizeof(Shared)); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  Shared* operator->() { return shared_; }
  Shared& operator*() { return *shared_; }

 private:
  Shared* shared_;
};

void raise_to(std::atomic<u64>& most, u64 value) {
  for (u64 seen = most; seen < value && !most.compare_exchange_weak(seen, value);) {
  }
}

// Takes and gives back for so long, and leaves nothing taken.
void hammer(Shared& shared, u32 row, u64 largest, u64 for_ns) {
  VgpuMemory memory = shared.session(row);
  std::mt19937 random(row);
  std::vector<u64> held;
  for (const u64 end = wire::monotonic_ns() + for_ns; wire::monotonic_ns() < end;) {
    const u64 bytes = 512 * (1 + random() % (largest / 512));
    if (random() % 3 != 0 && memory.reserve(bytes)) {
      ++shared.grants;
      raise_to(shared.most, shared.granted += bytes);
      held.push_back(bytes);
    } else if (!held.empty()) {
      shared.granted -= held.back();
      memory.give_back(held.back());
      held.pop_back();
    } else {
      ++shared.refusals;
    }
  }
  for (const u64 bytes : held) {
    shared.granted -= bytes;
    memory.give_back(bytes);
  }
}

// Runs `body` in a process of its own; it exits with 0.
template <typename Body>
pid_t in_process(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    body();
    _exit(0);
  }
  return pid;
}

bool ended_well(pid_t pid) {
  int status = 0;
  return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST_CASE("a vGPU's memory is exact to the byte") {
  Pages pages;
  pages->limit(64 * kMib);
  VgpuMemory one = pages->session(0);
  VgpuMemory two = pages->session(1);
  CHECK(one.reserve(64 * kMib - 512));
  CHECK_FALSE(two.reserve(513));
  CHECK(two.own_bytes() == 0);
  CHECK(two.reserve(512));
  CHECK_FALSE(one.reserve(1));
  CHECK_FALSE(one.reserve(~u64{0}));
  CHECK(one.all_bytes() == 64 * kMib);
  one.give_back(64 * kMib - 512);
  CHECK(two.all_bytes() == 512);
  CHECK(two.reserve(64 * kMib - 512));
}

TEST_CASE("a vGPU's limit may change at any time") {
  Pages pages;
  VgpuMemory one = pages->session(0);
  CHECK(one.reserve(1 << 30));  // not limited
  pages->limit(kMib);
  CHECK_FALSE(one.reserve(512));
  pages->limit((1 << 30) + 512);
  CHECK(one.reserve(512));
  CHECK_FALSE(one.reserve(512));
  pages->limit(0);
  CHECK(one.reserve(512));
  one.take(512);
  CHECK(pages->sum() == (1 << 30) + 3 * 512);
  VgpuMemory alone;
  CHECK(alone.reserve(512));
  CHECK(alone.all_bytes() == 512);
  CHECK(alone.limit_bytes() == 0);
}

TEST_CASE("other rows with nonsense refuse, and do not overflow") {
  Pages pages;
  pages->limit(kMib);
  VgpuMemory one = pages->session(0);
  pages->account().row[1].bytes = ~u64{0};
  pages->account().row[2].bytes = 512;
  CHECK_FALSE(one.reserve(512));
  CHECK(one.all_bytes() == ~u64{0});
}

TEST_CASE("processes that reserve at once never get more than the limit") {
  Pages pages;
  pages->limit(16 * kMib);
  std::vector<pid_t> children;
  for (u32 row = 0; row < 6; ++row)
    children.push_back(in_process([&] { hammer(*pages, row, 8 * kMib, 600'000'000); }));
  for (const pid_t child : children) CHECK(ended_well(child));
  CHECK(pages->most <= 16 * kMib);
  CHECK(pages->most > 12 * kMib);  // it was full at times
  CHECK(pages->grants > 100);
  CHECK(pages->sum() == 0);
}

TEST_CASE("threads that reserve at once never get more than the limit") {
  Pages pages;
  pages->limit(4096);
  std::vector<std::thread> threads;
  for (u32 row = 0; row < 6; ++row)
    threads.emplace_back([&, row] { hammer(*pages, row, 2048, 300'000'000); });
  for (std::thread& thread : threads) thread.join();
  CHECK(pages->most <= 4096);
  CHECK(pages->sum() == 0);
}

// There is always room for one more block of one of them: nobody may be refused.
TEST_CASE("a request that fits is granted while others come and go") {
  Pages pages;
  constexpr u32 kProcesses = 4;
  pages->limit(kProcesses * kMib);
  std::vector<pid_t> children;
  for (u32 row = 0; row < kProcesses; ++row)
    children.push_back(in_process([&] {
      VgpuMemory memory = pages->session(row);
      for (const u64 end = wire::monotonic_ns() + 500'000'000; wire::monotonic_ns() < end;) {
        if (!memory.reserve(kMib)) _exit(1);
        memory.give_back(kMib);
        ++pages->grants;
      }
    }));
  for (const pid_t child : children) CHECK(ended_well(child));
  CHECK(pages->grants > 1000);
}

// Both want the last block, again and again, and whoever has it gives it back: one of them always gets it.
TEST_CASE("of two that want the last block one gets it") {
  Pages pages;
  pages->limit(kMib);
  constexpr u32 kRounds = 300;
  std::array<std::atomic<u32>, 2> got{};
  std::atomic<u32> round{0};
  std::atomic<u32> done{0};
  std::atomic<u32> nobody{0};
  const auto take_part = [&](u32 row) {
    VgpuMemory memory = pages->session(row);
    for (u32 i = 1; i <= kRounds; ++i) {
      ++round;
      while (round < 2 * i) std::this_thread::yield();
      const bool mine = memory.reserve(kMib);
      got[row] = mine ? i : 0;
      ++done;
      while (done < 2 * i) std::this_thread::yield();
      if (row == 0 && got[0] != i && got[1] != i) ++nobody;
      if (mine) memory.give_back(kMib);
    }
  };
  std::thread other(take_part, 1);
  take_part(0);
  other.join();
  CHECK(nobody == 0);
}

TEST_CASE("a killed process takes nothing with it") {
  Pages pages;
  pages->limit(8 * kMib);
  for (int round = 0; round < 20; ++round) {
    const pid_t child = in_process([&] {
      VgpuMemory memory = pages->session(3);
      for (++pages->running;;) {
        while (memory.reserve(512)) {
        }
        memory.give_back(memory.own_bytes());
      }
    });
    while (pages->running == 0) std::this_thread::yield();
    pages->running = 0;
    usleep(static_cast<unsigned>(500 + 137 * round));
    kill(child, SIGKILL);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    AccountPage::Row& row = pages->account().row[3];
    VgpuMemory other = pages->session(0);
    CHECK_FALSE(other.reserve(8 * kMib + 512));
    row.bytes = 0;  // hostd
    row.reserving = 0;
    CHECK(pages->sum() == 0);
    CHECK(other.reserve(8 * kMib));
    other.give_back(8 * kMib);
  }
}

TEST_CASE("a process that was stopped while it reserved holds others up for a moment only") {
  Pages pages;
  pages->limit(kMib);
  AccountPage::Row& stopped = pages->account().row[5];
  stopped.bytes = kMib;
  stopped.reserving = 1;
  VgpuMemory memory = pages->session(0);
  const u64 begin = wire::monotonic_ns();
  CHECK_FALSE(memory.reserve(512));
  CHECK(wire::monotonic_ns() - begin < 5'000'000'000);
  // It comes to its senses while somebody waits.
  std::thread later([&] {
    usleep(5000);
    stopped.bytes = 0;
    stopped.reserving = 0;
  });
  CHECK(memory.reserve(kMib));
  later.join();
  // Whoever gets its row begins anew.
  stopped.reserving = 1;
  static_cast<void>(pages->session(5));
  CHECK(stopped.reserving == 0);
}

TEST_CASE("pages that are none are refused, and the quota is only read") {
  const int quota_fd = memfd_create("quota", MFD_CLOEXEC);
  const int account_fd = memfd_create("account", MFD_CLOEXEC);
  VgpuMemory memory;
  std::string error;
  CHECK_FALSE(map_vgpu_memory(quota_fd, 0, account_fd, 0, memory, error));
  CHECK(error == "the quota page is not 65536 bytes long");
  CHECK(ftruncate(quota_fd, QuotaPage::kBytes) == 0);
  CHECK(ftruncate(account_fd, AccountPage::kBytes) == 0);
  CHECK_FALSE(map_vgpu_memory(quota_fd, 0, account_fd, 0, memory, error));
  CHECK(error == "the quota page is not one of version 1");
  CHECK_FALSE(map_vgpu_memory(quota_fd, QuotaPage::kVgpus, account_fd, 0, memory, error));
  CHECK(error == "a row that its page does not have");
  const std::array<u32, 2> quota_head{QuotaPage::kMagic, QuotaPage::kVersion};
  const std::array<u32, 2> account_head{AccountPage::kMagic, AccountPage::kVersion};
  CHECK(pwrite(quota_fd, quota_head.data(), sizeof quota_head, 0) == sizeof quota_head);
  CHECK(pwrite(account_fd, account_head.data(), sizeof account_head, 0) == sizeof account_head);
  const u64 limit = kMib;
  const auto place = static_cast<off_t>(offsetof(QuotaPage, vgpu) + 2 * sizeof(QuotaPage::Vgpu) +
                                        offsetof(QuotaPage::Vgpu, memory_bytes));
  CHECK(pwrite(quota_fd, &limit, sizeof limit, place) == sizeof limit);
  const int read_only = open(("/proc/self/fd/" + std::to_string(quota_fd)).c_str(), O_RDONLY | O_CLOEXEC);
  REQUIRE(map_vgpu_memory(read_only, 2, account_fd, 9, memory, error));
  CHECK(memory.limit_bytes() == kMib);
  CHECK(memory.reserve(kMib));
  CHECK_FALSE(memory.reserve(512));
  for (const int fd : {quota_fd, account_fd, read_only}) close(fd);
}

// An array whose size does not fit into 64 bits, on a vGPU without a limit.
TEST_CASE("what cannot be counted is refused and forgets nothing") {
  Pages pages;
  for (const u64 limit : {u64{0}, ~u64{0}}) {
    pages->limit(limit);
    VgpuMemory memory = pages->session(3);
    REQUIRE(memory.reserve(3 * kMib));
    CHECK(!memory.reserve(~u64{0}));
    CHECK(memory.own_bytes() == 3 * kMib);
    CHECK(pages->account().row[3].bytes == 3 * kMib);
    memory.give_back(3 * kMib);
  }
}

}  // namespace gpupool::worker
