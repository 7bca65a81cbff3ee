// Stands in for the guest runtime in the test of generated code: the program's device 0 is the session's 1.
#pragma once

#include <cuda.h>

namespace gpupool::guest {

inline int session_device(CUdevice device) {
  return device == 0 ? 1 : -1;
}

}  // namespace gpupool::guest
