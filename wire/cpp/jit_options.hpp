// Compiler and linker options on the wire. Options that hold a number travel as they are, in the program's
// order; the two log buffers travel as their capacities and come back as text. The answer carries the numbers
// again, since the driver writes some of them (wall time, threads a block).
//
// Request: u16 options[], u32 values[], u32 info log capacity, u32 error log capacity. Answer: u32 values[],
// char info[], char error[].
#pragma once

#include <cuda.h>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

// As many as there are options that hold a number, so that a call's options fit a slot beside its image.
inline constexpr u32 kMaxJitOptions = 24;
inline constexpr u32 kMaxJitLogBytes = 1u << 20;

enum class JitOptionKind { number, log, unsupported, unknown };

// How an option travels. Unsupported: arrays of names and host addresses (17 to 19) patch the program's own
// addresses into the image, and the name lists (25 to 28) only meant something to LTO-IR made before
// CUDA 12.0.
constexpr JitOptionKind jit_option_kind(u32 option) {
  switch (option) {
    case CU_JIT_INFO_LOG_BUFFER:
    case CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES:
    case CU_JIT_ERROR_LOG_BUFFER:
    case CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES:
      return JitOptionKind::log;
    case CU_JIT_GLOBAL_SYMBOL_NAMES:
    case CU_JIT_GLOBAL_SYMBOL_ADDRESSES:
    case CU_JIT_GLOBAL_SYMBOL_COUNT:
    case CU_JIT_REFERENCED_KERNEL_NAMES:
    case CU_JIT_REFERENCED_KERNEL_COUNT:
    case CU_JIT_REFERENCED_VARIABLE_NAMES:
    case CU_JIT_REFERENCED_VARIABLE_COUNT:
      return JitOptionKind::unsupported;
    default:
      return option < CU_JIT_NUM_OPTIONS ? JitOptionKind::number : JitOptionKind::unknown;
  }
}

}  // namespace gpupool::wire
