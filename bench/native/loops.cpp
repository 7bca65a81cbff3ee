// Loops around driver calls, so that what is timed is the driver and not Python: a ctypes call costs more
// than most calls of a CUDA driver. Python gives the addresses of the functions, found in whatever
// libcuda.so.1 the process has.
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using u64 = std::uint64_t;
// Functions whose arguments are integers or pointers may be called with more than they take: on x86-64 and
// arm64 the callee does not look at the other registers.
using Call = int (*)(u64, u64, u64, u64);
using Launch = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** arguments,
                       void** extra);

constexpr int kNotReady = 600;  // CUDA_ERROR_NOT_READY, an answer of queries

int launch_many(Launch launch, void* function, void* stream, void** arguments, u64 count) {
  for (u64 i = 0; i < count; ++i) {
    if (const int code = launch(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, nullptr)) return code;
  }
  return 0;
}

}  // namespace

// Every function returns the first CUresult that is an error, or 0.
extern "C" {

int bench_repeat(Call call, u64 a, u64 b, u64 c, u64 d, u64 count) {
  for (u64 i = 0; i < count; ++i) {
    if (const int code = call(a, b, c, d); code != 0 && code != kNotReady) return code;
  }
  return 0;
}

// Two calls in turn: record and query, launch of a graph and synchronisation.
int bench_repeat_pair(Call first, u64 a, u64 b, Call second, u64 c, u64 d, u64 count) {
  for (u64 i = 0; i < count; ++i) {
    if (const int code = first(a, b, 0, 0)) return code;
    if (const int code = second(c, d, 0, 0); code != 0 && code != kNotReady) return code;
  }
  return 0;
}

int bench_launch(Launch launch, void* function, void* stream, void** arguments, u64 count) {
  return launch_many(launch, function, stream, arguments, count);
}

// A launch that is waited for, `count` times; `wait` takes the stream.
int bench_launch_wait(Launch launch, void* function, void* stream, void** arguments, Call wait, u64 count) {
  for (u64 i = 0; i < count; ++i) {
    if (const int code = launch_many(launch, function, stream, arguments, 1)) return code;
    if (const int code = wait(reinterpret_cast<u64>(stream), 0, 0, 0)) return code;
  }
  return 0;
}

// `count` launches from each of `threads` threads, each on its own stream. They begin together.
int bench_launch_threads(Launch launch, Call set_current, u64 context, void* function, void** streams,
                         void** arguments, u64 threads, u64 count) {
  std::atomic<u64> waiting{threads};
  std::atomic<int> failed{0};
  std::vector<std::thread> all;
  for (u64 i = 0; i < threads; ++i) {
    all.emplace_back([&, i] {
      int code = set_current(context, 0, 0, 0);
      waiting.fetch_sub(1);
      while (waiting.load() != 0) std::this_thread::yield();
      if (code == 0) code = launch_many(launch, function, streams[i], arguments, count);
      if (code != 0) failed.store(code);
    });
  }
  for (std::thread& each : all) each.join();
  return failed.load();
}

// `count` times: eight blocks of memory and all of them back, in another order. `stream` is for the
// asynchronous forms, which take it last; the others do not look at it.
int bench_allocate(Call allocate, Call release, u64 bytes, u64 stream, u64 count) {
  u64 blocks[8];
  for (u64 i = 0; i < count; ++i) {
    for (u64 k = 0; k < 8; ++k) {
      if (const int code = allocate(reinterpret_cast<u64>(&blocks[k]), bytes << (k % 4), stream, 0))
        return code;
    }
    for (u64 k = 0; k < 8; ++k) {
      if (const int code = release(blocks[(k * 3) % 8], stream, 0, 0)) return code;
    }
  }
  return 0;
}
}
