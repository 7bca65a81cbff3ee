// Allocating device memory so that its address is usable on both sides.
#pragma once

#include <cuda.h>

#include <functional>

#include "guest/runtime/manual/address_space.hpp"

namespace gpupool::guest {

class Session;

// Calls `allocate` (which asks the worker for at least so many bytes, and fills in the address and size)
// until the address is free in this process, and enters the result into the table. Blocks that fell on the
// program's own mappings are given back through `give_back` once a good one was found. OUT_OF_MEMORY when the
// program's mappings stay in the way.
CUresult allocate_at_free_address(Allocation& allocation,
                                  const std::function<CUresult(Allocation&, u64 least_bytes)>& allocate,
                                  const std::function<void(const Allocation&)>& give_back);

// Registered window memory for `allocation`, whose kind and flags are set, entered into the table.
CUresult allocate_from_window(Allocation& allocation, Context& context, u64 bytes);
// Gives it back once every context's work is done, as the driver waits too: the next owner of this memory
// must not see copies that are still under way.
CUresult free_to_window(const Allocation& allocation);
// The same without waiting.
void give_back(Session& session, const Allocation& allocation);

// Undoes the worker's mapping of registered memory, if there is one, once the work that may use it is done.
CUresult unmap_registered(const Allocation& allocation);

// Closes memory of another process as often as it was opened.
void forget_imported(const Allocation& allocation);

// Forgets what the program advised about managed memory that it frees.
void forget_advice(const Allocation& allocation);

}  // namespace gpupool::guest
