// Device memory that the program has freed and may want again in a moment: kept here instead of freed in the
// worker, so that a loop that allocates and frees asks nobody.
//
// Invariant: the worker never answers a question while something is kept. Whatever waits for an answer has
// it given back first (Call::wait), so no answer about free memory, pools or pointers can tell the
// difference; only allocations leave it, and they ask again without it before they report OUT_OF_MEMORY.
#pragma once

#include <cuda.h>

#include <atomic>

#include "guest/runtime/manual/address_space.hpp"

namespace gpupool::guest {

// How many blocks are kept; usually none.
inline std::atomic<u32> g_kept_blocks{0};

// Whether the program has freed a block of the kind, place, pool and size that `allocation` says; then its
// address is filled in. `stream` is where memory of a pool will be used, and was freed; null for memory of
// cuMemAlloc, which comes back once the context's work is done, as cuMemFree would have waited. An error is
// that of earlier work.
CUresult take_kept(Allocation& allocation, const Stream* stream, bool& found);

// Keeps a block that has left the address table. False when it must be freed in the worker.
bool keep_freed(const Allocation& allocation, Stream* stream);

// Frees in the worker what is kept of a stream that is about to be destroyed, or of a context; without
// either everything. True when there was something.
bool give_back_kept(const Stream* stream = nullptr, const Context* context = nullptr);

// Memory that another process may hold: it is never kept.
void never_keep(u64 address);

}  // namespace gpupool::guest
