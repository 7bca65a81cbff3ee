// Notices that the client is gone and ends the process. A thread of its own, because the dispatcher may be
// inside a long driver call; it never touches the driver.
#pragma once

#include <functional>

#include "hostd/worker/parcels.hpp"
#include "wire/cpp/layout.hpp"

namespace gpupool::worker {

// Starts the watch. `socket_fd` is watched for hang-up when >= 0 (shared memory only: over a stream its
// reader sees the end); `pidfd` for the client's exit when >= 0, since a forked child of the client may keep
// the socket open. Descriptors that the client sends go to `parcels`, which must live as long as the process.
void watch_client(int socket_fd, int pidfd, Parcels& parcels);

// The same for a client in a virtual machine, with which we share a window: what comes over the socket are
// bells, which ring the doorbell in the window, as no futex reaches from the guest's kernel to ours.
void watch_distant_client(int socket_fd, const wire::Window& window);
// The other way: wakes whoever sleeps over there. Never waits: bells that the client has yet to read do.
void ring_distant_client(int socket_fd);

// Answers whether the process behind `pidfd` is stopped by a signal or a debugger. Null function without a
// pidfd.
std::function<bool()> stopped_probe(int pidfd);

}  // namespace gpupool::worker
