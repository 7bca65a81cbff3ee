#include "hostd/worker/client_watch.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

#include "hostd/worker/log.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {

void watch(int socket_fd, int pidfd, Parcels& parcels) {
  // poll() skips negative descriptors.
  pollfd ends[2] = {{socket_fd, POLLIN | POLLRDHUP, 0}, {pidfd, POLLIN, 0}};
  while (true) {
    if (poll(ends, 2, -1) <= 0) continue;  // interrupted
    if (ends[1].revents != 0) end_session(kExitClientGone, "client exited");
    if ((ends[0].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
      end_session(kExitClientGone, "client closed the connection");
    if ((ends[0].revents & POLLIN) != 0 && !parcels.receive(socket_fd))
      end_session(kExitProtocol, "client sent what is no descriptor on the control socket");
  }
}

void hear_bells(int socket_fd, wire::Window window) {
  u8 bells[256];
  while (true) {
    const ssize_t heard = recv(socket_fd, bells, sizeof bells, 0);
    if (heard < 0 && errno == EINTR) continue;
    if (heard <= 0) end_session(kExitClientGone, "client closed the connection");
    window.control().doorbell.fetch_add(1, std::memory_order_release);
    wire::futex_wake(window.control().doorbell);
  }
}

// The "Pid:" line of a pidfd, in our own pid namespace; 0 when there is none.
long pid_behind(int pidfd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(pidfd));
  for (std::string line; std::getline(info, line);)
    if (line.rfind("Pid:", 0) == 0) return std::stol(line.substr(4));
  return 0;
}

}  // namespace

void watch_client(int socket_fd, int pidfd, Parcels& parcels) {
  if (socket_fd < 0 && pidfd < 0) return;
  std::thread(watch, socket_fd, pidfd, std::ref(parcels)).detach();
}

void watch_distant_client(int socket_fd, const wire::Window& window) {
  std::thread(hear_bells, socket_fd, window).detach();
}

void ring_distant_client(int socket_fd) {
  const u8 bell = 0;
  // A full buffer holds bells already; of a client that has gone the watch tells.
  [[maybe_unused]] const ssize_t sent = send(socket_fd, &bell, sizeof bell, MSG_DONTWAIT | MSG_NOSIGNAL);
}

std::function<bool()> stopped_probe(int pidfd) {
  if (pidfd < 0) return nullptr;
  const long pid = pid_behind(pidfd);
  if (pid <= 0) return nullptr;  // unknown: do not judge
  // Opened now, since the sandbox closes the way there. It stays this process's: once that is gone, reading
  // fails.
  const int stat = open(("/proc/" + std::to_string(pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC);
  if (stat < 0) return nullptr;
  return [stat] {
    char buffer[512];
    const ssize_t length = pread(stat, buffer, sizeof buffer, 0);
    if (length <= 0) return true;
    const std::string_view text(buffer, static_cast<size_t>(length));
    const size_t after_name = text.rfind(") ");
    if (after_name == std::string_view::npos || after_name + 2 >= text.size()) return true;
    const char state = text[after_name + 2];
    return state == 'T' || state == 't';
  };
}

}  // namespace gpupool::worker
