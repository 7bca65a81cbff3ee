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

// Whether the message may begin to capture its stream (`answered`: joins it to a capture), or destroys one.
[[nodiscard]] bool needs_mark(wire::Function function, bool answered);

}  // namespace gpupool::worker
