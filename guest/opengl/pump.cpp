#include "guest/opengl/pump.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::guest::opengl {
namespace {

constexpr size_t kBytes = 256 * 1024;

// One direction.
class Lane {
 public:
  Lane(int from, int to) : from_(from), to_(to), bytes_(kBytes) {}

  [[nodiscard]] bool wants_read() const { return !ended_ && next_ == end_; }
  [[nodiscard]] bool wants_write() const { return next_ != end_; }
  [[nodiscard]] bool done() const { return ended_ && next_ == end_; }
  [[nodiscard]] bool broken() const { return broken_; }

  // Reads what is there and passes it on at once, as far as it goes.
  void move() {
    if (wants_read() && !fill()) return;
    while (next_ != end_) {
      const ssize_t sent = send(to_, bytes_.data() + next_, end_ - next_, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (sent <= 0) {
        broken_ = true;
        return;
      }
      next_ += static_cast<size_t>(sent);
    }
  }

 private:
  bool fill() {
    const ssize_t got = recv(from_, bytes_.data(), bytes_.size(), MSG_DONTWAIT);
    if (got > 0) {
      next_ = 0;
      end_ = static_cast<size_t>(got);
      return true;
    }
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return false;
    if (got < 0) broken_ = true;
    ended_ = true;
    shutdown(to_, SHUT_WR);
    return false;
  }

  int from_;
  int to_;
  std::vector<u8> bytes_;
  size_t next_ = 0;
  size_t end_ = 0;
  bool ended_ = false;
  bool broken_ = false;
};

short events(const Lane& reads, const Lane& writes) {
  return static_cast<short>((reads.wants_read() ? POLLIN : 0) | (writes.wants_write() ? POLLOUT : 0));
}

}  // namespace

FirstEnd pump(int program, int host) {
  Lane up(program, host);
  Lane down(host, program);
  FirstEnd first = FirstEnd::host;
  bool known = false;
  while (true) {
    // A socket of which nothing is wanted is not asked: it would answer POLLHUP again and again.
    const short of_program = events(up, down);
    const short of_host = events(down, up);
    pollfd both[2] = {{of_program != 0 ? program : -1, of_program, 0},
                      {of_host != 0 ? host : -1, of_host, 0}};
    if (poll(both, 2, -1) < 0 && errno != EINTR) return FirstEnd::host;
    up.move();
    down.move();
    if (!known && (up.done() || down.done() || up.broken() || down.broken())) {
      known = true;
      first = up.done() || down.broken() ? FirstEnd::program : FirstEnd::host;
    }
    if (up.broken() || down.broken() || (up.done() && down.done())) return first;
  }
}

}  // namespace gpupool::guest::opengl
