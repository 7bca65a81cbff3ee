// The stack of contexts of each thread.
#pragma once

#include <memory>

#include "hostd/softgpu/api/context.hpp"

namespace gpupool::softgpu {

void push_context(std::shared_ptr<Context> context);
// Removes a destroyed context if it is the calling thread's current one. Other threads keep it, and get
// CONTEXT_IS_DESTROYED.
void forget_context(const Context& context);

}  // namespace gpupool::softgpu
