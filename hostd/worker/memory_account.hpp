// Counts what the session takes of its vGPUs' memory, and refuses what is above their quotas. The account
// sits between the handlers and the driver, in the table of the driver's functions: whatever allocates,
// whichever handler it is in, is charged before the driver is asked and given back after it has freed.
//
// Counted: linear, pitched and stream-ordered memory as it was asked for, rounded up to 512 bytes; physical
// blocks (cuMemCreate) until the last handle and mapping are gone; arrays by their elements; what pools and
// graphs hold (ordered_memory.hpp). Not counted: what the driver takes for itself, and memory that another
// session made and shares: it is charged there. docs/memory.md tells the rules to users.
#pragma once

#include "hostd/worker/worker.hpp"
#include "wire/cpp/share.hpp"

namespace gpupool::worker {

// Puts the account into worker.driver; from then on worker.usage shows the sums. Once a process. Only the
// dispatcher's thread may call what allocates and frees.
void account_memory(Worker& worker);

// Memory that others can still map through a descriptor (ShareKind::allocation) is there, whoever has
// released it: it stays charged until that token is dropped.
void block_exported(CUmemGenericAllocationHandle block, const wire::ShareToken& token);
void export_dropped(const wire::ShareToken& token);

// Pools that held idle memory are looked at anew, when there is nothing else to do: streams may have freed
// more by now, and other sessions of the vGPU want it.
void look_at_idle_memory();

// The driver without the account, for what the worker needs for a moment itself.
const DriverApi& uncounted_driver(const Worker& worker);

}  // namespace gpupool::worker
