// Stands in for the guest runtime in the test of generated code.
#pragma once

namespace gpupool::guest {

inline int g_per_thread_depth = 0;

struct PerThreadDefault {
  PerThreadDefault() { ++g_per_thread_depth; }
  ~PerThreadDefault() { --g_per_thread_depth; }
};

}  // namespace gpupool::guest
