// Where the host is and how a socket to it is opened: what libcuda and libnvidia-ml share.
#pragma once

#include <unistd.h>

#include <string>
#include <vector>

#include "wire/cpp/hello.hpp"
#include "wire/cpp/zero_copy.hpp"

namespace gpupool::guest {

struct Endpoint {
  wire::TransportKind kind = wire::TransportKind::shm;
  std::string path;              // unix
  std::string host, port;        // tcp, tls; vsock: the context id (2 is the host) and the port
  std::string text;              // as the user wrote it
  std::string wanted_transport;  // GPUPOOL_TRANSPORT, else guest.toml's, where that named the endpoint
  std::string window_socket;     // of a virtual machine's agent (machine_window.hpp); empty: there is none
};

// Owns a descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  void reset(int fd) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

// The endpoints to try, in order: what the user named, or in a virtual machine what the guest agent has
// written down, or the system's hostd and then this user's own. False with `why` when there is none.
bool candidates(std::vector<Endpoint>& endpoints, std::string& why);
// "shm", "tcp", "vsock", "rdma", "tls", "window".
const char* transport_name(wire::TransportKind kind);
// Whether the transport that is wanted, if one is, can be had at this endpoint.
bool check_transport(const Endpoint& endpoint, std::string& why);

// Sends at once, and notices within about a minute that the other machine is gone.
void set_up_tcp(int fd);

// A connected socket, close-on-exec, or -1. Sends on it are bounded by `timeout_s` too. For tls it is the TCP
// connection, with nothing said on it (secure.hpp).
int dial_socket(const Endpoint& endpoint, int timeout_s, std::string& why);
// Dials `count` further connections to where the first socket is connected, all at once, and appends them.
bool dial_lanes(int timeout_s, u32 count, std::vector<Descriptor>& sockets, std::string& why);
// Says on each socket behind the first whose it is; draws hello.nonce.
bool introduce_lanes(const std::vector<Descriptor>& sockets, wire::Hello& hello, std::string& why);
// SO_SNDTIMEO or SO_RCVTIMEO; 0 for none.
void set_timeout(int fd, int option, int seconds);
bool send_all(int fd, const void* data, size_t size);

// The token from GPUPOOL_TOKEN_FILE. Never from an environment value: those are visible to others.
bool read_token(u8 (&token)[64], std::string& why);
// A whole number from 1 to `highest` from the environment; `value` stays as it is when it is not set.
bool read_number(const char* name, u32 highest, u32& value, std::string& why);
// What this process's stream has sent by reference; null while there is none.
const wire::ZeroCopyTotals* zero_copy_totals();
// GPUPOOL_TCP_ZEROCOPY.
bool read_zero_copy(wire::ZeroCopyMode& mode, std::string& why);
// GPUPOOL_VGPU; empty when it is not set.
bool read_vgpu(char (&name)[64], std::string& why);
// comm of this process.
void read_program_name(char (&program)[64]);

}  // namespace gpupool::guest
