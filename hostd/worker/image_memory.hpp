// How many bytes of device memory a code image takes on a device: code and variables of its machine code, or
// the variables of its PTX, of which the code is not known before it is compiled.
#pragma once

#include <span>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// `image` holds exactly one image (as wire::measure_image() says). Of a fatbin what a device of compute
// capability `architecture` (90 for 9.0) would take. Code that cannot be looked into counts as long as it is.
u64 image_device_bytes(std::span<const u8> image, u32 architecture);

// Of what the driver is given: an image, or a wrapper around several (wire::FatbinWrapper). What it points to
// has been measured.
u64 code_device_bytes(const void* code, u32 architecture);

}  // namespace gpupool::worker
