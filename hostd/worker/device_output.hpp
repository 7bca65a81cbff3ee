// What kernels print. The driver writes printf output to this process's standard output and failed assertions
// to its standard error, within its own synchronisations; both are pipes here, and what comes through them is
// the client's. The log goes to the descriptor that was standard error at the start.
//
// Standard error carries other things too (a library's complaint): only lines that are device assertions go
// to the client, the others to the log. What nobody takes is kept up to a bound; the oldest is lost first, as
// in the driver's own buffer (CUDA Programming Guide, "Formatted Output").
#pragma once

#include <string>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Replaces standard output and standard error by pipes and starts the thread that keeps them from filling.
// Called once, before the driver is loaded. Without pipes everything goes to the log, which says so.
void capture_output();

// Moves up to `limit` bytes of what kernels have printed to `out`; true when more is left.
bool take_printed(u64 limit, std::string& out);
// Failed assertions so far.
std::string take_assertions();

// Has the driver wait in a context that a failed assertion has ended, which makes it print which one. Only
// for the end of a session: it is done by a thread of its own, and not waited for for ever.
void wait_for_assertions(const DriverApi& driver, CUcontext context);

// Puts what is left of both where the client finds it once it has seen the fault (wire::FaultOutput).
void publish_fault_output(const wire::Window& window);

// Logs what came through standard error and has not been read yet: the last thing before the process ends.
void drain_standard_error();

}  // namespace gpupool::worker
