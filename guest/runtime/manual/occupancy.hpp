// Occupancy as other parts need it.
#pragma once

#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

// cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags for a function on a device: from memory, or from the
// worker.
CUresult active_blocks(Function& function, int device, int block_size, u64 shared_bytes, unsigned int flags,
                       int& blocks);

}  // namespace gpupool::guest
