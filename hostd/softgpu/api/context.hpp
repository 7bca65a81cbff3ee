// Contexts, and which of them is current in a thread.
//
// A context owns its streams and, through its memory, modules and events' use, everything made in it. Once a
// launch has faulted, the context is lost: every later call in it returns that fault, as with the driver.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "hostd/softgpu/api/device.hpp"
#include "hostd/softgpu/api/registry.hpp"

namespace gpupool::softgpu {

struct Stream;
class Completion;

struct Context : std::enable_shared_from_this<Context> {
  CUcontext handle = nullptr;
  Device* device = nullptr;
  bool primary = false;
  std::atomic<u32> flags{0};
  u32 api_version = 3020;
  u64 id = 0;
  std::atomic<int> fault{CUDA_SUCCESS};
  std::atomic<bool> destroyed{false};
  std::atomic<int> cache_config{CU_FUNC_CACHE_PREFER_NONE};
  std::atomic<int> shared_config{CU_SHARED_MEM_CONFIG_DEFAULT_BANK_SIZE};
  std::array<std::atomic<u64>, CU_LIMIT_MAX> limits{};
  std::atomic<u32> blocking_captures{
      0};  // captures in progress on blocking streams: they forbid the legacy stream

  // Guards the stream lists and the order between streams: whoever submits holds it.
  std::mutex submit_mutex;
  std::vector<std::shared_ptr<Stream>> streams;
  std::shared_ptr<Stream> legacy;  // null once destroyed
  std::map<std::thread::id, std::shared_ptr<Stream>> per_thread;
  std::vector<std::shared_ptr<Completion>> gates;  // what all work submitted from now on waits for
  std::set<int> peers;                             // devices whose memory this context may use

  // Records the first fault; later ones change nothing.
  void set_fault(CUresult result) {
    int expected = CUDA_SUCCESS;
    fault.compare_exchange_strong(expected, result);
  }
  CUresult state() const { return static_cast<CUresult>(fault.load(std::memory_order_acquire)); }
  void require_healthy() const { require(state() == CUDA_SUCCESS, state()); }

  // Waits for everything submitted to any of its streams so far, and returns the fault if there is one.
  CUresult synchronize();
};

Registry<Context, CUcontext>& contexts();

// The context current in this thread, healthy or not; Error INVALID_CONTEXT when there is none.
std::shared_ptr<Context> current_context_any();
// ... and not faulted.
std::shared_ptr<Context> current_context();
// A context by handle; null means the current one. Error INVALID_CONTEXT.
std::shared_ptr<Context> context_of(CUcontext handle);
// Waits for all work on a device, of all contexts: what frees and unmaps do first.
void synchronize_device(const Device& device);
void synchronize_everything();

}  // namespace gpupool::softgpu
