#include "hostd/renderer/window.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "wire/cpp/futex.hpp"
#include "wire/cpp/reader.hpp"

namespace gpupool::renderer {
namespace {

void check(const wire::ByteRing& ring) {
  if (ring.broken()) throw wire::ProtocolError("impossible counters in the window");
}

}  // namespace

WindowConnection::WindowConnection(int bells, const wire::ByteRings& rings, std::function<void()> when_empty,
                                   std::function<int()> before_sleep)
    : Connection(bells, false, std::move(when_empty), std::move(before_sleep)),
      bells_(bells),
      in_(rings.from_guest()),
      out_(rings.to_guest()) {}

// What is read is a copy: the client may change its own meanwhile.
ssize_t WindowConnection::take(u8* data, size_t size) {
  const std::span<u8> there = in_.there();
  check(in_);
  const size_t count = std::min(size, there.size());
  if (count == 0) {
    errno = EAGAIN;
    return gone_ ? 0 : -1;
  }
  std::memcpy(data, there.data(), count);
  if (in_.consume(count)) ring();
  return static_cast<ssize_t>(count);
}

int WindowConnection::sleep(int timeout_ms) {
  in_.sleep(true);
  pollfd one{bells_, POLLIN, 0};
  const bool empty = in_.there().empty();
  const int ready = empty ? poll(&one, 1, timeout_ms) : 1;
  in_.sleep(false);
  if (one.revents != 0) hear();
  return ready;
}

bool WindowConnection::write(const void* data, size_t size) {
  const auto* from = static_cast<const u8*>(data);
  while (size > 0) {
    const std::span<u8> room = out_.room();
    check(out_);
    if (room.empty()) {
      if (gone_) return false;
      wait_for_client([this] { return out_.room().empty() && !out_.broken(); }, -1);
      continue;
    }
    const size_t count = std::min(size, room.size());
    std::memcpy(room.data(), from, count);
    if (out_.publish(count)) ring();
    from += count;
    size -= count;
  }
  return true;
}

bool WindowConnection::ended() {
  if (has_ahead() || !in_.there().empty()) return false;
  hear();
  return gone_;
}

void WindowConnection::finish(u64 at_most_ns) {
  const u64 until_ns = wire::monotonic_ns() + at_most_ns;
  while (!gone_ && !out_.taken()) {
    const u64 now_ns = wire::monotonic_ns();
    if (now_ns >= until_ns) return;
    const u64 left_ms = (until_ns - now_ns) / 1'000'000 + 1;
    wait_for_client([this] { return !out_.taken(); }, static_cast<int>(left_ms));
  }
}

// Sleeps until the client has taken something, if it is still `stuck` when the client knows that we sleep.
void WindowConnection::wait_for_client(const std::function<bool()>& stuck, int timeout_ms) {
  out_.sleep(true);
  pollfd one{bells_, POLLIN, 0};
  if (stuck()) poll(&one, 1, timeout_ms);
  out_.sleep(false);
  if (one.revents != 0) hear();
}

void WindowConnection::ring() {
  const u8 bell = 0;
  // A full buffer holds bells already; that the client has gone shows when we sleep.
  [[maybe_unused]] const ssize_t sent = send(bells_, &bell, sizeof bell, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void WindowConnection::hear() {
  u8 heard[64];
  ssize_t got = 0;
  do got = recv(bells_, heard, sizeof heard, MSG_DONTWAIT);
  while (got == sizeof heard);
  if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) gone_ = true;
}

}  // namespace gpupool::renderer
