// What a worker says before it dies of SIGSEGV, SIGILL, SIGFPE or SIGABRT: the driver call that was being
// served and where in which library it was. Without it the log would only have the signal's number.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// The function that the dispatcher is serving, for the handler alone. One relaxed store a slot.
inline std::atomic<u16> g_serving{0};

// Installs the handlers. They end in the signal's default, so that hostd sees how the worker ended.
void report_crashes();

}  // namespace gpupool::worker
