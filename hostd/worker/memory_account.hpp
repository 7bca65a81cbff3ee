// What the session has allocated from the driver, a GPU at a time. The account sits between the handlers and
// the driver, in the table of the driver's functions: whatever allocates, whichever handler it is in, is
// counted.
//
// Counted: linear, pitched and stream-ordered memory as it was asked for, rounded up to 512 bytes; physical
// blocks (cuMemCreate) until the last handle and mapping are gone; arrays by their elements. Not counted:
// what the driver takes for itself (contexts, modules, graphs, a pool's reserve).
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Puts the account into worker.driver; from then on worker.usage shows the sums. Once a process. Only the
// dispatcher's thread may call what allocates and frees.
void account_memory(Worker& worker);

}  // namespace gpupool::worker
