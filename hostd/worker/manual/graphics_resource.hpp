// Buffers and images of OpenGL that CUDA uses: what other handlers must tell.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// A context of OpenGL has been made; it shares objects with that of index `share`, 0 for none.
void opengl_context_made(u32 index, u32 share);
// Before it is destroyed: unregisters what no other context knows then.
void opengl_context_ends(Worker& worker, u32 index);

// Unregisters what was registered in a context of CUDA's, which is current.
void drop_graphics_resources(Worker& worker, u32 owner);

}  // namespace gpupool::worker
