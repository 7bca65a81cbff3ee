// Limits and flags of contexts.
#pragma once

#include <cuda.h>

#include "guest/runtime/manual/context.hpp"

namespace gpupool::guest {

// At most one way of waiting may be asked for.
inline bool valid_schedule(u32 flags) {
  const u32 schedule = flags & CU_CTX_SCHED_MASK;
  return schedule == CU_CTX_SCHED_AUTO || schedule == CU_CTX_SCHED_SPIN || schedule == CU_CTX_SCHED_YIELD ||
         schedule == CU_CTX_SCHED_BLOCKING_SYNC;
}

// Gives a primary context that comes alive again the limits it had at first.
CUresult restore_limits(Context& context);

}  // namespace gpupool::guest
