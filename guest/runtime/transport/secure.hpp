// TLS towards a host at tls://. Each connection gets a thread of its own that has the TCP socket and passes
// bytes to and from a plain one (wire/tls/tunnel.hpp); whoever dialled goes on with that. So crypto of
// several connections runs on several processors, and nothing else of the runtime knows of it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "guest/runtime/transport/endpoint.hpp"
#include "wire/tls/tunnel.hpp"

namespace gpupool::guest {

class Secured {
 public:
  Secured() = default;
  Secured(const Secured&) = delete;
  Secured& operator=(const Secured&) = delete;
  // The plain sockets must be closed by then: that ends the threads, which are waited for.
  ~Secured();

  // Shakes hands on every socket at once and puts the plain one in its place. The host is held to what
  // GPUPOOL_TLS_FINGERPRINT or GPUPOOL_TLS_CA say, else to this system's authorities; never to nothing.
  bool start(const Endpoint& endpoint, std::vector<Descriptor>& sockets, int timeout_s, std::string& why);
  // In a forked child: the threads are not there, their descriptors are.
  void abandon();

 private:
  struct Connection {
    std::atomic<int> wire{-1}, plain{-1};
    std::thread thread;
    tls::Handshake result = tls::Handshake::late;
    std::string why;
    void drop();
  };

  void carry(Connection& connection, u64 deadline_ns);
  bool open_pairs(std::vector<Descriptor>& sockets, std::vector<Descriptor>& ends, std::string& why);

  tls::Settings settings_;
  std::mutex mutex_;
  std::condition_variable news_;
  size_t finished_ = 0;  // handshakes
  std::vector<std::unique_ptr<Connection>> connections_;
};

}  // namespace gpupool::guest
