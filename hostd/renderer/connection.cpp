#include "hostd/renderer/connection.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "wire/cpp/descriptor_passing.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::renderer {
namespace {

constexpr size_t kAhead = 256 * 1024;
constexpr u64 kSpinNs = 30'000;

}  // namespace

Connection::Connection(int fd, bool is_unix, std::function<void()> when_empty,
                       std::function<int()> before_sleep)
    : fd_(fd),
      is_unix_(is_unix),
      when_empty_(std::move(when_empty)),
      before_sleep_(std::move(before_sleep)),
      ahead_(kAhead) {}

ssize_t Connection::take(u8* data, size_t size) {
  return recv(fd_, data, size, MSG_DONTWAIT);
}

int Connection::sleep(int timeout_ms) {
  pollfd one{fd_, POLLIN, 0};
  return poll(&one, 1, timeout_ms);
}

// Something can be read without sleeping, or before_sleep() has had its say.
bool Connection::wait_for_bytes() {
  while (true) {
    const int ready = sleep(before_sleep_());
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

// A client that was answered asks again soon; being woken takes longer than that. Not on one or two cores.
bool Connection::spin_on() {
  if (!wire::Backoff::spare_cores()) return false;
  const u64 now = wire::monotonic_ns();
  if (spun_since_ns_ == 0) spun_since_ns_ = now;
  if (now - spun_since_ns_ > kSpinNs) return false;
  for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
  return true;
}

bool Connection::receive(u8* data, size_t size, size_t& got) {
  bool told = false;
  while (true) {
    const ssize_t count = take(data, size);
    if (count > 0) {
      got = static_cast<size_t>(count);
      spun_since_ns_ = 0;
      return true;
    }
    if (count == 0) return false;
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
    if (!told) when_empty_();
    told = true;
    if (!spin_on() && !wait_for_bytes()) return false;
  }
}

bool Connection::read(void* data, size_t size) {
  auto* to = static_cast<u8*>(data);
  while (size > 0) {
    if (next_ == end_ && size >= kAhead) {
      size_t got = 0;
      if (!receive(to, size, got)) return false;
      to += got;
      size -= got;
      continue;
    }
    if (next_ == end_) {
      next_ = end_ = 0;
      if (!receive(ahead_.data(), ahead_.size(), end_)) return false;
    }
    const size_t piece = std::min(size, end_ - next_);
    std::memcpy(to, ahead_.data() + next_, piece);
    next_ += piece;
    to += piece;
    size -= piece;
  }
  return true;
}

bool Connection::write(const void* data, size_t size) {
  const auto* from = static_cast<const u8*>(data);
  while (size > 0) {
    const ssize_t sent = send(fd_, from, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    from += sent;
    size -= static_cast<size_t>(sent);
  }
  return true;
}

bool Connection::write_descriptor(int fd) {
  const u8 byte = 0;
  ssize_t sent = 0;
  do sent = wire::send_with_descriptor(fd_, &byte, 1, fd, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  return sent == 1;
}

bool Connection::ended() {
  if (next_ != end_) return false;
  u8 byte = 0;
  const ssize_t count = recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count == 0 || (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

}  // namespace gpupool::renderer
