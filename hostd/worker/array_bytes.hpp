// How much device memory an array takes, by its description: its elements, without the padding of the
// driver's own layout.
#pragma once

#include <cuda.h>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// Of an array, or of one level of a mipmapped one.
u64 array_bytes(const CUDA_ARRAY3D_DESCRIPTOR& shape, u32 level = 0);
u64 mipmapped_bytes(const CUDA_ARRAY3D_DESCRIPTOR& shape, u32 levels);

}  // namespace gpupool::worker
