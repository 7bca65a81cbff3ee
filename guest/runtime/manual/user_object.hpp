// User objects: reference-counted things of the program that graphs keep alive. They live entirely in the
// client; the worker never hears of them.
#pragma once

#include <cuda.h>

#include <atomic>

#include "guest/runtime/slab.hpp"

namespace gpupool::guest {

struct UserObject {
  void* pointer = nullptr;
  CUhostFn destroy = nullptr;
  std::atomic<u64> references{0};
};

void retain(UserObject& object, u64 count);
// At the last reference the destructor is called at once, in this thread, as driver 580 does (it must not
// call CUDA): not to be called with a lock held. False when there are fewer references than `count`.
bool release(UserObject& object, u64 count);

}  // namespace gpupool::guest
