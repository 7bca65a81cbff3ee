// Dialling the further connections of a session.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "guest/runtime/transport/endpoint.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

// A connection under way to where `first` goes: the same address, whatever its name would resolve to by now.
// -1 with errno.
int begin(int first) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(first, reinterpret_cast<sockaddr*>(&address), &size) != 0) return -1;
  Descriptor fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return -1;
  if (address.ss_family != AF_UNIX && address.ss_family != AF_VSOCK) set_up_tcp(fd.get());
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0 || errno == EINPROGRESS ||
      errno == EINTR)
    return fd.release();
  return -1;
}

// Waits for its end; sends on the socket are bounded from then on. 0, or the reason as an errno.
int finish(int fd, u64 deadline_ns, int timeout_s) {
  pollfd one{fd, POLLOUT, 0};
  while (true) {
    const u64 now = wire::monotonic_ns();
    if (now >= deadline_ns) return ETIMEDOUT;
    const int ready = poll(&one, 1, static_cast<int>((deadline_ns - now) / 1'000'000 + 1));
    if (ready > 0) break;
    if (ready < 0 && errno != EINTR) return errno;
  }
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  if (error != 0) return error;
  set_timeout(fd, SO_SNDTIMEO, timeout_s);
  return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0 ? 0 : errno;
}

bool failed(const char* what, int error, std::string& why) {
  why = std::string(what) + ": " + std::strerror(error) + "; GPUPOOL_TCP_CONNECTIONS=1 does without";
  return false;
}

}  // namespace

bool dial_lanes(int timeout_s, u32 count, std::vector<Descriptor>& sockets, std::string& why) {
  const u64 deadline_ns = wire::monotonic_ns() + static_cast<u64>(timeout_s) * 1'000'000'000;
  for (u32 i = 0; i < count; ++i) {
    const int fd = begin(sockets.front().get());
    if (fd < 0) return failed("cannot open a further connection to the host", errno, why);
    sockets.emplace_back(fd);
  }
  for (u32 i = 0; i < count; ++i) {
    const int error = finish(sockets[1 + i].get(), deadline_ns, timeout_s);
    if (error != 0) return failed("cannot open a further connection to the host", error, why);
  }
  return true;
}

bool introduce_lanes(const std::vector<Descriptor>& sockets, wire::Hello& hello, std::string& why) {
  if (hello.lanes == 0) return true;
  if (getrandom(hello.nonce, sizeof hello.nonce, 0) != static_cast<ssize_t>(sizeof hello.nonce))
    return failed("no random numbers for further connections", errno, why);
  wire::LaneHello message;
  message.bytes = sizeof message;
  std::memcpy(message.nonce, hello.nonce, sizeof message.nonce);
  std::memcpy(message.token, hello.token, sizeof message.token);
  for (size_t i = 1; i < sockets.size(); ++i) {
    if (!send_all(sockets[i].get(), &message, sizeof message))
      return failed("the host closed a further connection", errno, why);
    set_timeout(sockets[i].get(), SO_SNDTIMEO, 0);  // from now on a slow host is waited for
    ++message.index;
  }
  return true;
}

}  // namespace gpupool::guest
