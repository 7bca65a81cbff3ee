// What handlers need to know of stream captures.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Looks whether the stream is capturing now and remembers it: nothing of our own is issued to it while it is.
void note_capture(Worker& worker, wire::Handle stream);
// The same for every stream that was capturing.
void note_captures_ended(Worker& worker);
// Whether a stream is being captured into the graph: it must not go before the capture has ended.
bool is_captured_into(const Worker& worker, CUgraph graph);

// Ends a capture that the stream is in, before the stream goes: what the driver throws away with it loses its
// handles.
void abandon_capture(Worker& worker, const StreamEntry& stream);
// The same for every stream of a context, by the context's handle index.
void abandon_captures(Worker& worker, u32 context);

}  // namespace gpupool::worker
