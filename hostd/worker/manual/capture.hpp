// What handlers need to know of stream captures.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Looks whether the stream is capturing now and remembers it: nothing of our own is issued to it while it is.
void note_capture(Worker& worker, wire::Handle stream);
// The same for every stream that was capturing.
void note_captures_ended(Worker& worker);

}  // namespace gpupool::worker
