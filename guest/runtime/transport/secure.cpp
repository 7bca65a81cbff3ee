#include "guest/runtime/transport/secure.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool read_trust(const Endpoint& endpoint, tls::Trust& trust, std::string& why) {
  trust.host = endpoint.host;
  trust.ca_file = environment("GPUPOOL_TLS_CA");
  const std::string text = environment("GPUPOOL_TLS_FINGERPRINT");
  if (text.empty() || tls::parse_fingerprint(text, trust.fingerprint)) return true;
  why = "GPUPOOL_TLS_FINGERPRINT is '" + text +
        "'; it must be the 64 hexadecimal digits of a certificate's SHA-256 (`gpupool hostd --certificate` "
        "on the "
        "host prints them)";
  return false;
}

std::string explain(const Endpoint& endpoint, tls::Handshake result, const std::string& why) {
  const std::string text = "no secure connection to " + endpoint.text + ": " + why;
  if (result == tls::Handshake::plain) return text + "; if its endpoint has no TLS, dial tcp://";
  if (why.find("certificate") == std::string::npos) return text;
  return text +
         "; name who signed it in GPUPOOL_TLS_CA, or the certificate itself in GPUPOOL_TLS_FINGERPRINT "
         "(`gpupool "
         "hostd --certificate` on the host prints it)";
}

}  // namespace

// The number is forgotten before the descriptor is closed: by then it may be another's, which a forked child
// must not close.
void Secured::Connection::drop() {
  for (std::atomic<int>* one : {&wire, &plain}) {
    const int fd = one->exchange(-1);
    if (fd >= 0) close(fd);
  }
}

Secured::~Secured() {
  bool waiting = false;
  {
    const std::lock_guard lock(mutex_);
    waiting = finished_ < connections_.size();
  }
  for (const auto& connection : connections_) {
    const int fd = connection->wire.load();
    if (waiting && fd >= 0) shutdown(fd, SHUT_RDWR);  // a handshake that nobody waits for any more
  }
  for (const auto& connection : connections_)
    if (connection->thread.joinable()) connection->thread.join();
}

void Secured::abandon() {
  for (const auto& connection : connections_) {
    connection->drop();
    connection->thread.detach();
  }
}

bool Secured::open_pairs(std::vector<Descriptor>& sockets, std::vector<Descriptor>& ends, std::string& why) {
  for (Descriptor& socket : sockets) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
      why = std::string("no socket pair for TLS: ") + std::strerror(errno);
      return false;
    }
    ends.emplace_back(pair[0]);
    connections_.push_back(std::make_unique<Connection>());
    connections_.back()->plain = pair[1];
    connections_.back()->wire = socket.release();
  }
  return true;
}

bool Secured::start(const Endpoint& endpoint, std::vector<Descriptor>& sockets, int timeout_s,
                    std::string& why) {
  tls::Trust trust;
  if (!read_trust(endpoint, trust, why) || !settings_.for_client(trust, why)) return false;
  std::vector<Descriptor> ends;
  if (!open_pairs(sockets, ends, why)) {
    for (const auto& connection : connections_) connection->drop();
    connections_.clear();
    return false;
  }
  const u64 deadline_ns = wire::monotonic_ns() + static_cast<u64>(timeout_s) * 1'000'000'000;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the program's signals are not for our threads
  for (const auto& connection : connections_)
    connection->thread =
        std::thread([this, one = connection.get(), deadline_ns] { carry(*one, deadline_ns); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::unique_lock lock(mutex_);
  news_.wait(lock, [this] { return finished_ == connections_.size(); });  // each has its deadline
  for (const auto& connection : connections_) {
    if (connection->result == tls::Handshake::done) continue;
    why = explain(endpoint, connection->result, connection->why);
    return false;  // `ends` are closed here, which ends the others
  }
  for (size_t i = 0; i < sockets.size(); ++i) sockets[i].reset(ends[i].release());
  return true;
}

void Secured::carry(Connection& connection, u64 deadline_ns) {
  {
    tls::Tunnel tunnel(settings_, connection.wire);
    std::string why;
    const tls::Handshake result = tunnel.shake_hands(deadline_ns, why);
    {
      const std::lock_guard lock(mutex_);
      connection.result = result;
      connection.why = why;
      ++finished_;
    }
    news_.notify_one();
    if (result == tls::Handshake::done) tunnel.relay(connection.plain, false);
  }
  connection.drop();
}

}  // namespace gpupool::guest
