#include "guest/runtime/transport/vsock_watch.hpp"

#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

constexpr u64 kSecondNs = 1'000'000'000;
constexpr u32 kSilenceMs = 10'000;         // before the host is asked
constexpr u64 kAnswerNs = 10 * kSecondNs;  // what it has each time: it resets the connection at once
constexpr int kTries = 2;
constexpr int kSliceMs = 200;  // how late stop() is seen while the host does not answer
// Nobody listens there, so asking is no connection for hostd.
constexpr u32 kNobodysPort = 1;

}  // namespace

VsockWatch::VsockWatch(int socket, const std::atomic<u64>& received, std::function<void()> lost)
    : received_(received), lost_(std::move(lost)) {
  sockaddr_vm peer{};
  socklen_t size = sizeof peer;
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && peer.svm_family == AF_VSOCK)
    host_ = peer.svm_cid;
}

void VsockWatch::start() {
  if (host_ != 0) thread_ = std::thread([this] { watch(); });
}

void VsockWatch::stop() {
  stopping_.store(1, std::memory_order_release);
  wire::futex_wake(stopping_);
  if (thread_.joinable()) thread_.join();
}

void VsockWatch::abandon() {
  if (thread_.joinable()) thread_.detach();
}

void VsockWatch::watch() {
  u64 seen = received_.load(std::memory_order_relaxed);
  int failures = 0;
  while (true) {
    if (failures == 0) wire::futex_wait(stopping_, 0, kSilenceMs);
    if (stopping_.load(std::memory_order_acquire) != 0) return;
    const u64 now = received_.load(std::memory_order_relaxed);
    failures = now != seen || host_answers() ? 0 : failures + 1;
    seen = now;
    if (failures < kTries || stopping_.load(std::memory_order_acquire) != 0) continue;
    log_line(
        "the host of this virtual machine does not answer over vsock any more; the machine's next start "
        "brings its vGPU back");
    lost_();
    return;
  }
}

bool VsockWatch::host_answers() const {
  Descriptor fd(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return true;  // no descriptor left: says nothing about the host
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = host_;
  address.svm_port = kNobodysPort;
  // The kernel's own limit of two seconds would look like an answer (vsock(7)).
  const timeval timeout{kAnswerNs / kSecondNs + 1, 0};
  setsockopt(fd.get(), AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &timeout, sizeof timeout);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return true;
  if (errno != EINPROGRESS) return errno != ETIMEDOUT;
  const u64 deadline = wire::monotonic_ns() + kAnswerNs;
  pollfd one{fd.get(), POLLOUT, 0};
  while (wire::monotonic_ns() < deadline && stopping_.load(std::memory_order_acquire) == 0)
    if (poll(&one, 1, kSliceMs) > 0) return true;
  return false;
}

}  // namespace gpupool::guest
