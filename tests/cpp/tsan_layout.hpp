// Included before everything else in builds with ThreadSanitizer (CMakeLists.txt): its shadow memory lies
// where the window usually is, and this is a range that it leaves to the program.
#pragma once

#define kWindowBase kUsualWindowBase
#include "wire/cpp/layout.hpp"
#undef kWindowBase

namespace gpupool::wire {

inline constexpr u64 kWindowBase = 0x0010'0000'0000;

}  // namespace gpupool::wire
