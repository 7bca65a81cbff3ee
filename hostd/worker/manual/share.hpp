// Memory and events that other sessions may open, as far as other handlers must know of them.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// The memory at this address, or the event, is gone: its token means nothing any more. Costs nothing where
// nothing is shared.
void forget_shared_memory(Worker& worker, CUdeviceptr address);
void forget_shared_event(Worker& worker, CUevent event);

// Fills a block that nobody has written to with zeroes, before another session can map it (vmm.cpp).
CUresult clear_block(Worker& worker, CUmemGenericAllocationHandle block);

}  // namespace gpupool::worker
