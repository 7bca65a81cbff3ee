// Stands in for the guest runtime in the test of generated code.
#pragma once

#include "wire_functions.hpp"

namespace gpupool::guest {

inline int g_profiled_calls = 0;
inline wire::Function g_profiled{};

struct ProfiledCall {
  explicit ProfiledCall(wire::Function function) {
    ++g_profiled_calls;
    g_profiled = function;
  }
};

}  // namespace gpupool::guest
