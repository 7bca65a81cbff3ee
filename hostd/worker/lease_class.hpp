// What a message has to do with the compute lease (gate.hpp).
#pragma once

#include "wire_functions.hpp"  // generated: enum class wire::Function

namespace gpupool::worker {

enum class LeaseClass {
  submits,  // makes the GPU work: needs the lease
  stream,   // works on a stream without making the GPU work: waits behind what waits for the lease
  passes,   // depends on nothing that was submitted: goes ahead of what waits for the lease
  ordered,  // everything else: waits, and nothing passes it, since it may free or make what others use
};

[[nodiscard]] LeaseClass lease_class(wire::Function function);

}  // namespace gpupool::worker
