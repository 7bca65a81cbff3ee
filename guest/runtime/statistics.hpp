// Counts how many messages the program sent and which of its calls had to wait for the worker or the GPU.
// Whoever asks with GPUPOOL_STATISTICS_FILE finds them there as one JSON object when the program exits; while
// it runs, guest/counters.py reads the same through statistics_table().
#pragma once

#include "wire/cpp/types.hpp"
#include "wire_functions.hpp"  // generated

namespace gpupool::guest {

// A call of this kind is about to wait. Called off the launch path only, so a shared counter is cheap enough.
void count_wait(wire::Function function);

// Arranges for the file to be written at exit, if the variable names one. Called once, by Session::connect.
void arrange_statistics();

// What cuGetExportTable answers for our own table, which keeps the library's exported symbols NVIDIA's: its
// size in bytes, then `size_t (*)(char* out, size_t capacity)`. That writes the JSON object, cut off at
// `capacity` and with a terminator, and returns its whole length without one; 0 when there is no session.
const void* const* statistics_table();

}  // namespace gpupool::guest
