// How the session reaches its worker. Once connected every transport looks the same to the rest of the guest
// runtime: a window in memory. On shared memory the worker maps the same pages; over a stream a pump of two
// threads mirrors slots and data to the worker, and words, answers and data back.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "wire/cpp/hello.hpp"
#include "wire/cpp/layout.hpp"

namespace gpupool::guest {

class Secured;

class Transport {
 public:
  virtual ~Transport() = default;
  // False once the worker is gone. Does not block.
  virtual bool peer_alive() = 0;
  // "shm", "tcp", "tls", "vsock", "window": for `gpupool status` and log lines.
  virtual const char* name() const = 0;
  // True when both sides see the same pages.
  virtual bool shared_memory() const = 0;
  // True when those pages are a device's, mapped write-combining: stores become visible in any order, and
  // loads may be done early, unless fences say otherwise; and no operation that locks the bus may go there.
  virtual bool weakly_ordered() const { return false; }
  // Wakes the worker, or the sender of a stream, which has said in the window that it sleeps.
  virtual void ring(wire::Control& control);
  // Sleeps until the answer `wanted` may be in the box, at most for that long.
  virtual void sleep(wire::ReplyBox& box, u64 wanted, u32 timeout_ms);
  // Hands a descriptor to the worker under a number that a later message names (wire/cpp/parcel.hpp); false
  // where that cannot be done. The caller keeps its own.
  virtual bool send_descriptor(int fd, u64 id) = 0;
  // Forgets the connection in a forked child without touching what the parent uses.
  virtual void abandon() = 0;
};

struct Connection {
  std::unique_ptr<Transport> transport;
  wire::Window window;
  wire::Welcome welcome;
};

// Dials the endpoint that the environment names (GPUPOOL_ENDPOINT, else the system's socket, else this
// user's), over GPUPOOL_TRANSPORT or the best that the endpoint offers. On failure returns false with `why`
// in words for the user; `refused` is true when a host answered and said no.
bool dial(Connection& connection, std::string& why, bool& refused);

// The three kinds. They take over their sockets and the reserved address range at window.base.
std::unique_ptr<Transport> make_shared_memory(int socket, int window_fd, wire::Window window,
                                              std::string& why);
// Of a virtual machine: `window` is at that offset of the file, and the socket carries bells.
std::unique_ptr<Transport> make_machine_window(int socket, int window_fd, u64 offset, wire::Window window,
                                               std::string& why);
// The main connection first, then the lanes. `name` is the stream's kind, a literal: to it tcp, tls and vsock
// are the same. `secured` has the other ends of the sockets, and is null where these are the connections
// themselves.
std::unique_ptr<Transport> make_stream(const std::vector<int>& sockets, std::unique_ptr<Secured> secured,
                                       const char* name, wire::Window window, std::string& why);

}  // namespace gpupool::guest
