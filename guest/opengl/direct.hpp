// The generated path for the program that `gpupool-opengl run --direct` runs (docs/opengl.md).
#pragma once

#include <string>

namespace gpupool::guest::opengl {

// What describes libEGL_gpupool.so to GLVND, in the folder of one run.
inline constexpr char kVendorFile[] = "/10_gpupool.json";

// Has GLVND's libEGL.so.1 ask gpupool's own EGL first, and Mesa's for displays that are not its: writes the
// description into `folder` and sets this process's variables. False with `why`.
bool choose_direct(const std::string& folder, std::string& why);

}  // namespace gpupool::guest::opengl
