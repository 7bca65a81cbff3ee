// The worker's end of a stream transport: one thread writes what arrives into the window, as a client on
// shared memory would have; another sends words, answers, data and errors back. The dispatcher knows nothing
// of it.
#pragma once

#include <vector>

#include "hostd/worker/usage_page.hpp"
#include "wire/cpp/layout.hpp"
#include "wire/cpp/zero_copy.hpp"

namespace gpupool::worker {

// Starts both threads on a connected socket, and two for each further connection of the session. They end the
// process when the client closes one or breaks the protocol. What was sent by reference is counted in
// `usage`, which may be null.
void start_stream_mirror(int socket, const std::vector<int>& lanes, wire::Window window,
                         wire::ZeroCopyMode zero_copy, UsagePage* usage);

}  // namespace gpupool::worker
