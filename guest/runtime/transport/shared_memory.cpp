// The transport of one machine: the worker maps the same memfd at the same address. There is nothing to do
// per message; the socket stays open only to tell each side that the other is gone.
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "guest/runtime/transport/transport.hpp"
#include "wire/cpp/descriptor_passing.hpp"
#include "wire/cpp/parcel.hpp"

namespace gpupool::guest {
namespace {

class SharedMemory final : public Transport {
 public:
  explicit SharedMemory(int socket) : socket_(socket) {}
  ~SharedMemory() override {
    if (socket_ >= 0) close(socket_);
  }
  bool peer_alive() override {
    pollfd socket{socket_, POLLIN | POLLRDHUP, 0};
    // The worker never sends after the Welcome: anything to read is the end of the stream. A pending signal
    // interrupts even a poll that does not wait; whoever asked asks again.
    return poll(&socket, 1, 0) <= 0;
  }
  const char* name() const override { return "shm"; }
  bool shared_memory() const override { return true; }
  bool send_descriptor(int fd, u64 id) override {
    wire::Parcel parcel;
    parcel.id = id;
    // The worker empties this socket at once; one that is stopped must not stop us.
    ssize_t sent = 0;
    do sent = wire::send_with_descriptor(socket_, &parcel, sizeof parcel, fd, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent == static_cast<ssize_t>(sizeof parcel);
  }
  void abandon() override {
    close(socket_);
    socket_ = -1;
  }

 private:
  int socket_;
};

}  // namespace

std::unique_ptr<Transport> make_shared_memory(int socket, int window_fd, wire::Window window,
                                              std::string& why) {
  auto transport = std::make_unique<SharedMemory>(socket);
  void* mapped = window_fd < 0 ? MAP_FAILED
                               : mmap(window.base, window.size, PROT_READ | PROT_WRITE,
                                      MAP_SHARED | MAP_FIXED, window_fd, 0);
  if (mapped == MAP_FAILED) {
    why = window_fd < 0 ? "the host sent no window"
                        : std::string("cannot map the window: ") + std::strerror(errno);
  }
  if (window_fd >= 0) close(window_fd);
  if (mapped == MAP_FAILED) return nullptr;
  // A forked child must not write into our ring. Pinned memory (the heap) stays: children may read it.
  madvise(window.base, wire::kHeapOffset, MADV_DONTFORK);
  return transport;
}

}  // namespace gpupool::guest
