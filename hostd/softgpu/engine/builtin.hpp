// Functions that CUDA programs call without defining them: vprintf (what printf becomes), __assertfail,
// cudaGraphSetConditional.
#pragma once

#include "hostd/softgpu/engine/machine.hpp"

namespace gpupool::softgpu::engine {

// Builtin::none when the name is not known.
Builtin builtin_of(std::string_view name);

void call_builtin(Lanes& lanes, const CallSite& site, const Function& callee);

}  // namespace gpupool::softgpu::engine
