// Host functions on the worker's side. The driver calls run_in_client() on a thread of its own; that asks the
// client through completion word 0 and waits. See guest/runtime/manual/host_function.hpp.
#include "hostd/worker/manual/host_function.hpp"

#include <atomic>
#include <mutex>

#include "wire/cpp/futex.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr u32 kSpinUs = 200;  // for the client's thread, which may have to be woken
constexpr u32 kNapUs = 500;

// The driver's threads know no Worker. Published with the first host function; a session has one window.
std::atomic<u8*> g_window_base{nullptr};

// Waits without a bound of its own: the client's function may take as long as it likes, and when the client
// is gone this process ends (client_watch.cpp).
void CUDA_CB run_in_client(void* id) {
  static std::mutex one_at_a_time;
  static u32 sequence = 0;
  const std::lock_guard lock(one_at_a_time);
  const wire::Window window{g_window_base.load(std::memory_order_acquire), wire::kWindowMinBytes};
  ++sequence;
  window.word(0).value.store((static_cast<u64>(sequence) << 32) | static_cast<u32>(reinterpret_cast<u64>(id)),
                             std::memory_order_release);
  wire::Backoff backoff(kSpinUs, kNapUs);
  while (static_cast<u32>(window.control().host_released.load(std::memory_order_acquire)) != sequence)
    backoff.step();
}

}  // namespace

CUhostFn client_function(Worker& worker) {
  g_window_base.store(worker.window.base, std::memory_order_release);
  return &run_in_client;
}

// u32 id.
CUresult handle_cuLaunchHostFunc(Worker& worker, Request& request) {
  const auto id = request.in.get<u32>();
  return worker.driver.cuLaunchHostFunc(request.stream, client_function(worker), client_argument(id));
}

}  // namespace gpupool::worker
