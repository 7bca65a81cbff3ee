#include "hostd/vsock/connector.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "hostd/beside/rights.hpp"
#include "hostd/worker/sandbox.hpp"
#include "wire/cpp/descriptor_passing.hpp"

namespace gpupool::vsock {
namespace {

// How long one may wait for a place in a service's line of connections; the VM's others wait as well.
constexpr timeval kPatience{1, 0};

struct Question {
  u64 serial = 0;
  u64 port = 0;
};

Descriptor connect_port(u32 port) {
  Descriptor made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!made) return made;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "vsock_%u", port);
  setsockopt(made.get(), SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
  if (connect(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) made.reset();
  return made;
}

bool answer(int to, u64 serial, int connected) {
  return wire::send_with_descriptor(to, &serial, sizeof serial, connected, MSG_NOSIGNAL) == sizeof serial;
}

// Until the relay is gone.
[[noreturn]] void serve(int relay) {
  prctl(PR_SET_NAME, "vsock-connector");
  worker::close_other_descriptors({relay});
  std::string error;
  if (!beside::drop_rights(error)) _exit(1);
  Question question;
  for (;;) {
    const ssize_t count = recv(relay, &question, sizeof question, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count != sizeof question) _exit(0);
    const Descriptor connected = connect_port(static_cast<u32>(question.port));
    if (!answer(relay, question.serial, connected.get())) _exit(0);
  }
}

}  // namespace

bool Connector::start(std::string& error) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    error = std::string("socketpair: ") + std::strerror(errno);
    return false;
  }
  socket_.reset(pair[0]);
  const Descriptor other(pair[1]);
  const pid_t child = fork();
  if (child == 0) serve(other.get());
  if (child < 0) error = std::string("fork: ") + std::strerror(errno);
  return child > 0;
}

bool Connector::ask(u64 serial, u32 port) {
  const Question question{serial, port};
  return send(socket_.get(), &question, sizeof question, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof question;
}

Connector::Got Connector::take(Answer& answer) {
  int file = -1;
  const ssize_t count =
      wire::receive_with_descriptor(socket_.get(), &answer.serial, sizeof answer.serial, file, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Got::nothing;
  answer.socket.reset(file);
  if (count != sizeof answer.serial) return Got::end;
  return Got::answer;
}

}  // namespace gpupool::vsock
