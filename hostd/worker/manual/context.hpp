// Contexts in the worker.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Puts back, at the end of a scope, the context that was current in the driver at its start.
class KeepCurrent {
 public:
  explicit KeepCurrent(const DriverApi& driver) : driver_(driver) {
    if (driver_.cuCtxGetCurrent(&before_) != CUDA_SUCCESS) before_ = nullptr;
  }
  // A context destroyed meanwhile cannot be put back; the dispatcher makes the right one current for each
  // slot.
  ~KeepCurrent() { driver_.cuCtxSetCurrent(before_); }
  KeepCurrent(const KeepCurrent&) = delete;
  KeepCurrent& operator=(const KeepCurrent&) = delete;

 private:
  const DriverApi& driver_;
  CUcontext before_ = nullptr;
};

// The context that a client's handle names, or null. Slots name contexts by index alone, so the table's
// generation is always 0.
CUcontext find_context(Worker& worker, wire::Handle handle);

// The driver's device for the session's index `device`. Throws ProtocolError when there is none.
CUdevice device_at(const Worker& worker, i32 device);

}  // namespace gpupool::worker
