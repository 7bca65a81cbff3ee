#include "hostd/worker/memory_ledger.hpp"

#include <algorithm>

namespace gpupool::worker {

MemoryLedger& memory_ledger() {
  static auto& one = *new MemoryLedger();
  return one;
}

void MemoryLedger::open(Worker& worker) {
  worker_ = &worker;
  real_ = worker.driver;
}

u32 MemoryLedger::index_of(CUdevice device) const {
  const std::vector<CUdevice>& devices = worker_->devices;
  const auto found = std::find(devices.begin(), devices.end(), device);
  const auto index = static_cast<u32>(found == devices.end() ? 0 : found - devices.begin());
  return std::min(index, wire::kMaxDevices - 1);
}

u32 MemoryLedger::current_index() const {
  CUdevice device = 0;
  return real_.cuCtxGetDevice(&device) == CUDA_SUCCESS ? index_of(device) : 0;
}

void MemoryLedger::publish(u32 device) {
  worker_->usage->device[device].memory_bytes.store(vgpu(device).own_bytes(), std::memory_order_relaxed);
}

bool MemoryLedger::try_charge(u32 device, u64 bytes) {
  if (!vgpu(device).reserve(bytes)) return false;
  publish(device);
  return true;
}

bool MemoryLedger::charge(u32 device, u64 bytes) {
  return try_charge(device, bytes) || (make_room && make_room(device) && try_charge(device, bytes));
}

void MemoryLedger::charge_anyway(u32 device, u64 bytes) {
  vgpu(device).take(bytes);
  publish(device);
}

void MemoryLedger::release(u32 device, u64 bytes) {
  vgpu(device).give_back(bytes);
  publish(device);
}

void MemoryLedger::keep(u64 key, u32 device, u64 bytes, CUcontext context) {
  forget(key);  // what the driver freed by itself (with a context) and gives out again
  things_[key] = Thing{bytes, device, context};
}

bool MemoryLedger::forget(u64 key) {
  const auto found = things_.find(key);
  if (found == things_.end()) return false;
  release(found->second.device, found->second.bytes);
  things_.erase(found);
  return true;
}

u64 MemoryLedger::bytes_of(u64 key) const {
  const auto found = things_.find(key);
  return found == things_.end() ? 0 : found->second.bytes;
}

void MemoryLedger::context_gone(CUcontext context) {
  std::erase_if(things_, [&](const auto& entry) {
    const Thing& thing = entry.second;
    if (thing.context != context) return false;
    release(thing.device, thing.bytes);
    return true;
  });
}

}  // namespace gpupool::worker
