// The search behind cuGetProcAddress.
#pragma once

#include <cuda.h>

#include <span>

#include "guest_proc_table.hpp"  // generated
#include "wire/cpp/types.hpp"

namespace gpupool::guest {

// The entry point that `name` means for a program built for CUDA `version` (12000 for 12.0). Null when there
// is none; `status` says why.
void* find_entry(std::span<const ProcEntry> table, const char* name, int version, u64 flags,
                 CUdriverProcAddressQueryResult& status);

}  // namespace gpupool::guest
