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

// The context in which host memory is registered for all of them, or null before the first one is opened.
// Registered memory goes with the context that it was registered in, so it must not be one that the client
// can destroy.
CUcontext registration_context();

// Makes the first device's primary context before there is a client. False, and logged, when the driver will
// not. (Making one and letting it go again brings nothing: the next takes as long, 100 ms on an H100.)
bool prepare_primary(Worker& worker);

// The context that a client's handle names, or null. Slots name contexts by index alone, so the table's
// generation is always 0.
CUcontext find_context(Worker& worker, wire::Handle handle);

// Destroys what was made in a context and the client does not end by itself: executable graphs, arrays,
// texture and surface objects, linker states. The context must be current.
void empty_context(Worker& worker, u32 owner);

// Whether it is the primary context of one of the session's devices. Those live as long as the session.
bool is_primary(CUcontext context);

// Enters a context under the client's handle; forgets it and its streams.
void put_context(Worker& worker, wire::Handle handle, CUcontext context);
void forget_context(Worker& worker, wire::Handle handle);
// Writes what the client keeps about the current context; the other end is read_description() in
// guest/runtime/manual/context.cpp.
void describe_context(const DriverApi& driver, wire::Writer& out);

// The driver's device for the session's index `device`. Throws ProtocolError when there is none.
CUdevice device_at(const Worker& worker, i32 device);

}  // namespace gpupool::worker
