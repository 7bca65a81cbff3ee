// How a program comes by the descriptor of its machine's window.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "guest/runtime/transport/machine_window.hpp"
#include "wire/cpp/descriptor_passing.hpp"

namespace gpupool::guest {
namespace {

constexpr int kAgentTimeoutSeconds = 20;  // a machine whose processors are busy
constexpr u64 kPage = 4096;

// Reads the offer and takes its descriptor. False where that is not what came.
bool receive_offer(int socket, MachineWindow& window) {
  wire::WindowOffer offer;
  int fd = -1;
  ssize_t got = 0;
  errno = 0;
  do got = wire::receive_with_descriptor(socket, &offer, sizeof offer, fd, MSG_WAITALL);
  while (got < 0 && errno == EINTR);
  window.fd.reset(fd);
  window.bytes = offer.bytes;
  return got == sizeof offer && offer.magic == wire::kWindowOfferMagic && window.fd.get() >= 0;
}

}  // namespace

bool fetch_machine_window(const std::string& socket_path, MachineWindow& window, std::string& why) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof address.sun_path) {
    why = "the path of the guest agent's socket is too long: " + socket_path;
    return false;
  }
  std::memcpy(address.sun_path, socket_path.c_str(), socket_path.size() + 1);
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  set_timeout(socket.get(), SO_SNDTIMEO, kAgentTimeoutSeconds);
  set_timeout(socket.get(), SO_RCVTIMEO, kAgentTimeoutSeconds);
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    why = "the guest agent does not answer at " + socket_path + ": " + std::strerror(errno);
    return false;
  }
  if (!receive_offer(socket.get(), window)) {
    why = errno == EAGAIN ? "the guest agent does not answer at " + socket_path + " in time"
                          : "the guest agent has no window to give (its log says why)";
    return false;
  }
  struct stat facts {};
  const bool sized = fstat(window.fd.get(), &facts) == 0 && static_cast<u64>(facts.st_size) == window.bytes &&
                     std::has_single_bit(window.bytes);
  // Whether it can be mapped, before the host sets a piece of it aside: a kernel in lockdown refuses.
  void* probe =
      sized ? mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, window.fd.get(), 0) : MAP_FAILED;
  if (probe != MAP_FAILED) {
    munmap(probe, kPage);
    return true;
  }
  why = sized ? std::string("this program cannot map the machine's window: ") + std::strerror(errno)
              : "the guest agent's window is of another size than it says, or of one that no window has";
  return false;
}

}  // namespace gpupool::guest
