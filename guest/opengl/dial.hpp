// A session of OpenGL on the host: the same endpoint, token and vGPU as a CUDA program's (docs/opengl.md).
#pragma once

#include <memory>
#include <string>

#include "guest/runtime/transport/secure.hpp"

namespace gpupool::guest::opengl {

// The program behind a connection, as the kernel says.
struct Program {
  u32 pid = 0;
  char name[64] = {};
};

struct Session {
  std::unique_ptr<Secured> secured;  // outlives the socket, whose end ends its thread
  Descriptor socket;
  bool shared = false;  // the host is on this machine: it takes the program's own socket
  // A slot of this machine's window, mapped for good; null: all bytes go through the socket.
  u8* slot = nullptr;
  u64 slot_bytes = 0;
};

// Dials and is welcomed. False with `why`, in words for the user.
bool dial(const Program& program, Session& session, std::string& why);

}  // namespace gpupool::guest::opengl
