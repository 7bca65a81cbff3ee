// The transport of a virtual machine that shares a window with its host: the session's ring and data are in a
// piece of it, which the worker has mapped at the same address. Futexes do not reach another kernel, so
// whoever sleeps says so in the window and is waked by a byte over vsock, which carries nothing else.
//
// The window is a device's memory and mapped write-combining (resource2_wc; docs/data-plane.md says why).
#include "guest/runtime/transport/machine_window.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "guest/runtime/transport/vsock_watch.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

class MachineWindowTransport final : public Transport {
 public:
  explicit MachineWindowTransport(int socket)
      : socket_(socket), watch_(socket, received_, [this] { shutdown(socket_, SHUT_RDWR); }) {}
  ~MachineWindowTransport() override {
    watch_.stop();
    if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
    if (listener_.joinable()) listener_.join();
    if (socket_ >= 0) close(socket_);
  }

  void start() {
    // The program's signals are not for our threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    listener_ = std::thread([this] { listen_for_bells(); });
    watch_.start();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  bool peer_alive() override { return !gone_.load(std::memory_order_acquire); }
  const char* name() const override { return transport_name(wire::TransportKind::window); }
  bool shared_memory() const override { return true; }
  bool weakly_ordered() const override { return true; }
  bool send_descriptor(int, u64) override { return false; }  // to another machine

  void ring(wire::Control&) override {
    const u8 bell = 0;
    // A full buffer holds bells already; that the worker has gone the listener sees.
    [[maybe_unused]] const ssize_t sent = send(socket_, &bell, sizeof bell, MSG_DONTWAIT | MSG_NOSIGNAL);
  }

  void sleep(wire::ReplyBox& box, u64 wanted, u32 timeout_ms) override {
    const u32 heard = bells_.load(std::memory_order_acquire);
    box.sleeping.store(1, std::memory_order_release);
    // Out of the processor's buffers, and before we look: the worker answers first and looks then.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (box.done.load(std::memory_order_acquire) != wanted && peer_alive())
      wire::futex_wait(bells_, heard, timeout_ms);
    box.sleeping.store(0, std::memory_order_release);
  }

  void abandon() override {
    // The threads do not exist in a forked child.
    close(socket_);
    socket_ = -1;
    gone_.store(true, std::memory_order_release);
    listener_.detach();
    watch_.abandon();
  }

 private:
  void listen_for_bells() {
    u8 bells[64];
    while (true) {
      const ssize_t heard = recv(socket_, bells, sizeof bells, 0);
      if (heard < 0 && errno == EINTR) continue;
      if (heard <= 0) break;
      received_.fetch_add(1, std::memory_order_relaxed);
      wake();
    }
    log_debug("the connection to the worker has ended");
    gone_.store(true, std::memory_order_release);
    wake();
  }

  void wake() {
    bells_.fetch_add(1, std::memory_order_release);
    wire::futex_wake(bells_);
  }

  int socket_;
  std::atomic<bool> gone_{false};
  std::atomic<u32> bells_{0};  // a futex, in memory of our own
  std::atomic<u64> received_{0};
  std::thread listener_;
  VsockWatch watch_;
};

}  // namespace

std::unique_ptr<Transport> make_machine_window(int socket, int window_fd, u64 offset, wire::Window window,
                                               std::string& why) {
  void* mapped = mmap(window.base, window.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, window_fd,
                      static_cast<off_t>(offset));
  const int error = errno;
  close(window_fd);
  if (mapped == MAP_FAILED) {
    why = std::string("cannot map the machine's window: ") + std::strerror(error);
    close(socket);
    return nullptr;
  }
  // A forked child must not write into our ring. Pinned memory (the heap) stays: children may read it.
  madvise(window.base, wire::kHeapOffset, MADV_DONTFORK);
  auto transport = std::make_unique<MachineWindowTransport>(socket);
  transport->start();
  return transport;
}

}  // namespace gpupool::guest
