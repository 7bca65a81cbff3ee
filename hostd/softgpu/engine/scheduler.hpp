// Runs the groups of a warp.
#pragma once

#include "hostd/softgpu/engine/machine.hpp"

namespace gpupool::softgpu::engine {

// Runs a warp until all its groups wait or have exited, or it has used its turn. False when it could do
// nothing.
bool run_warp(Warp& warp, CachedRange* ranges);

// Starts a warp: all lanes at the kernel's first instruction.
void start_warp(Warp& warp, u32 pc, u32 mask);

// Lets lanes that wait for others look again (a lane they wait for has moved on or exited).
void wake_waiting_lanes(Warp& warp);

// A warp's lanes have exited: barriers that waited only for them open.
void recheck_barriers(Block& block);

}  // namespace gpupool::softgpu::engine
