// Carries bytes between two stream sockets, both ways at once, until both directions have ended.
#pragma once

#include <cstddef>

namespace gpupool::guest::opengl {

// Nothing is kept but a quarter MiB each way: who does not read makes the other wait. The end of one
// direction is passed on, and the other goes on. What ended first is answered.
enum class FirstEnd { program, host };
FirstEnd pump(int program, int host);

}  // namespace gpupool::guest::opengl
