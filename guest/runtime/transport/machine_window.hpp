// A virtual machine's window: memory of its host that the machine sees as a device (ivshmem). The guest agent
// has the device open and hands the descriptor to programs, which need no rights of their own.
#pragma once

#include <string>

#include "guest/runtime/transport/endpoint.hpp"

namespace gpupool::guest {

struct MachineWindow {
  Descriptor fd;
  u64 bytes = 0;
};

// Asks the agent at that unix socket, and tries whether the window can be mapped. False with `why`.
bool fetch_machine_window(const std::string& socket_path, MachineWindow& window, std::string& why);

}  // namespace gpupool::guest
