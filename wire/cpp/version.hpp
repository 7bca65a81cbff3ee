// The versions that both ends name to each other. tests/test_tidy.py holds kVersion and pyproject.toml
// together.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr char kVersion[] = "0.1.0";
// The CUDA version whose headers the API description was generated from; cuDriverGetVersion never answers
// more.
inline constexpr u32 kCudaVersion = 13000;

}  // namespace gpupool::wire
