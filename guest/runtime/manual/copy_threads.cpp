#include "guest/runtime/manual/copy_threads.hpp"

#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace gpupool::guest {
namespace {

constexpr u32 kThreads = 4;  // six gain nothing (measured)
constexpr u32 kMostThreads = 16;
constexpr u64 kParallelFrom = 1u << 20;  // below it waking a thread costs more than it brings
constexpr std::size_t kHelperStack = 256 << 10;

// The helpers and the one copy that they may be working on. Never destroyed: a helper may sleep in it at
// exit.
struct Crew {
  std::mutex busy;  // held by the copy that uses the helpers
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  u32 started = 0;
  u64 generation = 0;
  u32 count = 0;    // threads of this copy, the caller included
  u32 running = 0;  // helpers that have not finished it
  const std::function<void(u32, u32)>* work = nullptr;

  static Crew& instance() {
    static auto* crew = new Crew();
    return *crew;
  }
  // Starts helpers until there are `wanted`; returns how many there are.
  u32 start(u32 wanted);
  void help(u32 index);
};

struct HelperStart {
  Crew* crew;
  u32 index;
};

void* helper_main(void* argument) {
  const HelperStart start = *static_cast<HelperStart*>(argument);
  delete static_cast<HelperStart*>(argument);
  pthread_setname_np(pthread_self(), "gpupool-copy");
  start.crew->help(start.index);
  return nullptr;
}

u32 Crew::start(u32 wanted) {
  if (started >= wanted) return started;
  // New threads inherit the mask: the program's signals are for the program's threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kHelperStack);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  while (started < wanted) {
    pthread_t thread;
    auto* argument = new HelperStart{this, started + 1};
    if (pthread_create(&thread, &attributes, helper_main, argument) != 0) {
      delete argument;  // a thread limit: go on with those we have
      break;
    }
    ++started;
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

void Crew::help(u32 index) {
  u64 seen = 0;
  std::unique_lock lock(mutex);
  while (true) {
    wake.wait(lock, [&] { return generation != seen; });
    seen = generation;
    if (index >= count) continue;  // this copy wanted fewer threads
    const std::function<void(u32, u32)>& mine = *work;
    const u32 of = count;
    lock.unlock();
    mine(index, of);
    lock.lock();
    if (--running == 0) done.notify_one();
  }
}

u32 usable_threads() {
  static const u32 usable = [] {
    // For measuring and for tests, on machines whose cores say something else.
    if (const char* wanted = std::getenv("GPUPOOL_COPY_THREADS"); wanted != nullptr) {
      const long threads = std::strtol(wanted, nullptr, 10);
      return threads < 1 ? 1u : threads > kMostThreads ? kMostThreads : static_cast<u32>(threads);
    }
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores <= 2) return 1u;
    return cores < static_cast<long>(kThreads) ? static_cast<u32>(cores) : kThreads;
  }();
  return usable;
}

__attribute__((target("avx2"))) void stream_avx2(u8* destination, const u8* source, std::size_t bytes) {
  const std::size_t head = (32 - (reinterpret_cast<u64>(destination) & 31)) & 31;
  std::memcpy(destination, source, head);
  std::size_t at = head;
  for (; at + 128 <= bytes; at += 128) {
    const auto* from = reinterpret_cast<const __m256i*>(source + at);
    auto* to = reinterpret_cast<__m256i*>(destination + at);
    const __m256i a = _mm256_loadu_si256(from);
    const __m256i b = _mm256_loadu_si256(from + 1);
    const __m256i c = _mm256_loadu_si256(from + 2);
    const __m256i d = _mm256_loadu_si256(from + 3);
    _mm256_stream_si256(to, a);
    _mm256_stream_si256(to + 1, b);
    _mm256_stream_si256(to + 2, c);
    _mm256_stream_si256(to + 3, d);
  }
  std::memcpy(destination + at, source + at, bytes - at);
  _mm_sfence();  // streaming stores are not ordered with the release that lets others see the data
}

}  // namespace

u32 copy_thread_count(u64 bytes) {
  return bytes < kParallelFrom ? 1 : usable_threads();
}

void run_copy(u32 threads, const std::function<void(u32, u32)>& work) {
  Crew& crew = Crew::instance();
  if (threads <= 1 || !crew.busy.try_lock()) {
    work(0, 1);
    return;
  }
  const std::lock_guard held(crew.busy, std::adopt_lock);
  {
    const std::lock_guard lock(crew.mutex);
    const u32 helpers = crew.start(threads - 1);
    crew.count = helpers + 1 < threads ? helpers + 1 : threads;
    crew.running = crew.count - 1;
    crew.work = &work;
    ++crew.generation;
  }
  crew.wake.notify_all();
  work(0, crew.count);
  std::unique_lock lock(crew.mutex);
  crew.done.wait(lock, [&] { return crew.running == 0; });
}

void copy_streaming(void* destination, const void* source, std::size_t bytes) {
  static const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  // Below this the head and tail cost more than the stores save.
  if (avx2 && bytes >= 4096) {
    stream_avx2(static_cast<u8*>(destination), static_cast<const u8*>(source), bytes);
  } else {
    std::memcpy(destination, source, bytes);
  }
}

}  // namespace gpupool::guest
