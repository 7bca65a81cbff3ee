// Allocating device memory so that its address is usable on both sides.
#pragma once

#include <cuda.h>

#include <functional>

#include "guest/runtime/manual/address_space.hpp"

namespace gpupool::guest {

// Calls `allocate` (which asks the worker for at least so many bytes, and fills in the address and size)
// until the address is free in this process, and enters the result into the table. Blocks that fell on the
// program's own mappings are given back through `give_back` once a good one was found. OUT_OF_MEMORY when the
// program's mappings stay in the way.
CUresult allocate_at_free_address(Allocation& allocation,
                                  const std::function<CUresult(Allocation&, u64 least_bytes)>& allocate,
                                  const std::function<void(const Allocation&)>& give_back);

}  // namespace gpupool::guest
