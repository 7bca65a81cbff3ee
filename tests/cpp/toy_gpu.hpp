// A driver with streams that really run beside the dispatcher, each in a thread of its own, and nothing else:
// what the transports' tests need of a GPU. Device memory is numbers with bytes behind them, so that no
// address of it exists in the process.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::test {

// Fills in every function; those that a session of copies, memsets, events and host functions needs do
// something.
void connect_toy_gpu(worker::DriverApi& driver);

}  // namespace gpupool::test
