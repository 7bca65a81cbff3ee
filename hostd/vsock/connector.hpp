// Connects `vsock_PORT` in the VM's folder for the relay, in a process of its own: the relay, which handles
// what the guest says, can then be without every system call that makes or connects a socket, and without
// the file system. All that the relay can ask here is a port's number.
#pragma once

#include <string>

#include "hostd/vsock/descriptor.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

class Connector {
 public:
  // Starts the process; its working folder is the VM's. False with `error`.
  bool start(std::string& error);
  [[nodiscard]] int socket() const { return socket_.get(); }

  // False if it cannot be asked now.
  bool ask(u64 serial, u32 port);
  struct Answer {
    u64 serial = 0;
    Descriptor socket;  // none: refused
  };
  enum class Got { answer, nothing, end };
  Got take(Answer& answer);

 private:
  Descriptor socket_;
};

}  // namespace gpupool::vsock
