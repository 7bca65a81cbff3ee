// CUDA arrays: here plain memory, row after row. They can be copied to and from; there are no textures to
// read them.
#pragma once

#include <memory>

#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

struct Array {
  CUarray handle = nullptr;
  CUDA_ARRAY3D_DESCRIPTOR descriptor{};
  u64 row_bytes = 0;
  u64 rows = 1, planes = 1;
  u64 base = 0, bytes = 0;
  int device = 0;
  u64 context_id = 0;
  bool graphics = false;  // OpenGL's, while it is mapped

  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array();  // frees the memory once the last copy has run
};

Registry<Array, CUarray>& arrays();

// A new one in the current context. Error INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY.
std::shared_ptr<Array> create_array(const CUDA_ARRAY3D_DESCRIPTOR& descriptor);

// Forgets all arrays of a context.
void drop_arrays(const Context& context);

}  // namespace gpupool::softgpu
