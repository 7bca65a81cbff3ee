// Stands in for the guest runtime in the test of generated code.
#pragma once

#include <cuda.h>

namespace gpupool::guest {

struct Session {
  static Session* current();
  CUresult failed() const;
};

}  // namespace gpupool::guest
