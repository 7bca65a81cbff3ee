// Notices that the client is gone and ends the process. A thread of its own, because the dispatcher may be
// inside a long driver call; it never touches the driver.
#pragma once

#include <functional>

#include "hostd/worker/parcels.hpp"

namespace gpupool::worker {

// Starts the watch. `socket_fd` is watched for hang-up when >= 0 (shared memory only: over a stream its
// reader sees the end); `pidfd` for the client's exit when >= 0, since a forked child of the client may keep
// the socket open. Descriptors that the client sends go to `parcels`, which must live as long as the process.
void watch_client(int socket_fd, int pidfd, Parcels& parcels);

// Answers whether the process behind `pidfd` is stopped by a signal or a debugger. Null function without a
// pidfd.
std::function<bool()> stopped_probe(int pidfd);

}  // namespace gpupool::worker
