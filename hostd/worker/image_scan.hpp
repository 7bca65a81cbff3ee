// Whether code that the client has loaded may print. Synchronisations of a session whose code does not are
// reads of memory; those of one whose code does ask the worker each time. Images are compressed as nvcc makes
// them, and looking into them takes as long as reading them, so a thread of its own does it.
#pragma once

#include <memory>

#include "hostd/worker/manual/module_image.hpp"

namespace gpupool::worker {

// Looks for the device's printf in machine code, PTX or a fatbin of them. True when in doubt. `image` holds
// exactly one image (as wire::measure_image() says).
bool may_print(std::span<const u8> image);

// Has the image looked through, once one of a session prints no others.
void scan_image(std::shared_ptr<ImageCopy> image);

enum class Printing : u32 { no = 0, yes = 1, unknown = 2 };  // unknown: still looking
Printing printing();

}  // namespace gpupool::worker
