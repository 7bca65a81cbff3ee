// Leaves out of a fatbin what none of the session's devices can run. Libraries carry code for every
// architecture since 2018; on its way to the worker that would be copied twice.
#pragma once

#include <span>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

// An architecture as fatbins number them: 90 for compute capability 9.0.
using Architecture = u32;

// A fatbin without the entries that no device can use: its own header, then runs of the program's memory.
struct FatbinSelection {
  std::vector<u8> header;
  std::vector<std::span<const u8>> entries;
  u64 bytes = 0;  // of both
};

// What to send of a measured fatbin. The whole of it when it is not laid out as expected or when nothing in
// it fits, so that the driver gives its own error.
FatbinSelection select_entries(std::span<const u8> fatbin, std::span<const Architecture> devices);

}  // namespace gpupool::guest
