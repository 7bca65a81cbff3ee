// Counts, for whoever asks with GPUPOOL_STATISTICS_FILE: how many messages the program sent and which of its
// calls had to wait for the worker or the GPU. Written as one JSON object when the program exits.
#pragma once

#include "wire/cpp/types.hpp"
#include "wire_functions.hpp"  // generated

namespace gpupool::guest {

// A call of this kind is about to wait. Called off the launch path only, so a shared counter is cheap enough.
void count_wait(wire::Function function);

// Arranges for the file to be written at exit, if the variable names one. Called once, by Session::connect.
void arrange_statistics();

}  // namespace gpupool::guest
