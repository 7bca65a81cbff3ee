// Texture and surface objects, which travel as the driver's own numbers.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Destroys those that were made in a context (by handle index), which is current.
void destroy_textures(Worker& worker, u32 owner);

}  // namespace gpupool::worker
