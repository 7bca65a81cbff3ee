#include "hostd/worker/populate.hpp"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "hostd/worker/log.hpp"

namespace gpupool::worker {

namespace {

// One huge page, and short enough to let others at this process's mappings in between.
constexpr u64 kChunkBytes = 2u << 20;
// More gained nothing where it was tried with pageable copies, and other sessions want cores, too.
constexpr u32 kMostThreads = 4;

u32 cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? static_cast<u32>(CPU_COUNT(&allowed)) : 1;
}

}  // namespace

void prefer_huge_pages(void* address, u64 bytes) {
  // EINVAL: a kernel without them.
  if (madvise(address, bytes, MADV_HUGEPAGE) != 0) log(LogLevel::debug, "no huge pages for the window");
}

void make_pages(void* address, u64 bytes) {
  make_pages(address, bytes, std::min(kMostThreads, cores()));
}

void make_pages(void* address, u64 bytes, u32 threads) {
  const u64 chunks = (bytes + kChunkBytes - 1) / kChunkBytes;
  std::atomic<u64> next{0};
  const auto work = [&] {
    for (u64 chunk = next++; chunk < chunks; chunk = next++) {
      const u64 place = chunk * kChunkBytes;
      u8* begin = static_cast<u8*>(address) + place;
      if (madvise(begin, std::min(kChunkBytes, bytes - place), MADV_POPULATE_WRITE) != 0) next = chunks;
    }
  };
  std::vector<std::jthread> others;
  try {
    for (u64 i = 1; i < std::min<u64>(threads, chunks); ++i) others.emplace_back(work);
  } catch (const std::system_error& error) {
    // The session's cgroup or the system has no thread left: those that there are do it.
    log(LogLevel::debug, "fewer threads to make pages", error.what());
  }
  work();
}

bool page_present(void* page) {
  unsigned char state = 0;
  return mincore(page, 1, &state) == 0 && (state & 1) != 0;
}

}  // namespace gpupool::worker
