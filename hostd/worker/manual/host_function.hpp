// Functions of the client that the driver is given in a form of ours.
#pragma once

#include <cuda.h>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// What the driver calls for any of the client's host functions, with client_argument(id) as its argument.
CUhostFn client_function(Worker& worker);
inline void* client_argument(u32 id) {
  return reinterpret_cast<void*>(static_cast<u64>(id));
}
inline u32 client_id(const void* argument) {
  return static_cast<u32>(reinterpret_cast<u64>(argument));
}

}  // namespace gpupool::worker
