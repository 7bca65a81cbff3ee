// What the session has taken of each GPU, thing by thing, so that the same is given back. Bytes are charged
// to the vGPU before the driver is asked (vgpu_memory.hpp).
//
// Only the dispatcher's thread comes here.
#pragma once

#include <array>
#include <functional>
#include <unordered_map>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// The driver's unit of linear memory; what is asked for counts rounded up to it.
constexpr u64 in_granules(u64 bytes) {
  constexpr u64 kGranule = 512;
  return bytes > ~u64{0} - kGranule ? ~u64{0} : (bytes + kGranule - 1) / kGranule * kGranule;
}

class MemoryLedger {
 public:
  // Before worker.driver is changed.
  void open(Worker& worker);
  [[nodiscard]] Worker& worker() const { return *worker_; }
  // The driver itself: nothing that is asked of it is counted.
  [[nodiscard]] const DriverApi& driver() const { return real_; }
  [[nodiscard]] bool is_open() const { return worker_ != nullptr; }

  // The session's index of a device, or of the current context's; 0 for one that is none of the session's.
  [[nodiscard]] u32 index_of(CUdevice device) const;
  [[nodiscard]] u32 current_index() const;
  [[nodiscard]] VgpuMemory& vgpu(u32 device) const { return worker_->memory[device]; }

  // Takes bytes from the vGPU; false when they do not fit. charge() first has what is idle given up.
  bool try_charge(u32 device, u64 bytes);
  bool charge(u32 device, u64 bytes);
  // What is there already, whatever the limit says.
  void charge_anyway(u32 device, u64 bytes);
  void release(u32 device, u64 bytes);
  // Who gives up what is idle on a device; it says whether there was anything.
  std::function<bool(u32 device)> make_room;

  // Notes what has been charged, by address or handle; with a context it goes when that does.
  void keep(u64 key, u32 device, u64 bytes, CUcontext context);
  // Another size of a thing, for which it has been charged already.
  void resize(u64 key, u32 device, u64 bytes, CUcontext context) {
    things_[key] = Thing{bytes, device, context};
  }
  // Gives it back; false when there is none of that key.
  bool forget(u64 key);
  [[nodiscard]] u64 bytes_of(u64 key) const;
  void context_gone(CUcontext context);

 private:
  struct Thing {
    u64 bytes = 0;
    u32 device = 0;
    CUcontext context = nullptr;
  };

  void publish(u32 device);

  Worker* worker_ = nullptr;
  DriverApi real_{};
  std::unordered_map<u64, Thing> things_;
};

// One a process, as the functions in the driver's table have no argument to carry it.
MemoryLedger& memory_ledger();

}  // namespace gpupool::worker
