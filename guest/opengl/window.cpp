#include "guest/opengl/window.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "guest/runtime/log.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest::opengl {
namespace {

constexpr u64 kSpinNs = 30'000;  // an answer comes soon; not on one or two processors

enum class Step { moved, nothing, ended };

bool would_wait() {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

class Pump {
 public:
  Pump(int program, int bells, const wire::ByteRings& rings)
      : program_(program), bells_(bells), up_(rings.to_host()), down_(rings.from_host()) {}

  FirstEnd run() {
    u64 idle_since_ns = 0;
    while (true) {
      // The host leaves when we have all that it wrote. The slot is then another session's, perhaps.
      if (host_gone_) return FirstEnd::host;
      const Step up = to_host();
      const Step down = to_program();
      if (up == Step::ended || down == Step::ended) return FirstEnd::program;
      if (up_.broken() || down_.broken()) {
        log_line("the host's counters in the machine's window are impossible");
        return FirstEnd::host;
      }
      if (up == Step::moved || down == Step::moved) {
        idle_since_ns = 0;
        continue;
      }
      if (program_gone_) return FirstEnd::program;
      if (spin(idle_since_ns)) continue;
      sleep();
      idle_since_ns = 0;
    }
  }

 private:
  // From the socket right into the window.
  Step to_host() {
    const std::span<u8> room = up_.room();
    if (room.empty()) return Step::nothing;
    const ssize_t got = recv(program_, room.data(), room.size(), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && !would_wait())) return Step::ended;
    if (got < 0) return Step::nothing;
    if (up_.publish(static_cast<u64>(got))) ring();
    return Step::moved;
  }

  Step to_program() {
    const std::span<u8> there = down_.there();
    if (there.empty()) return Step::nothing;
    const ssize_t sent = send(program_, there.data(), there.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return would_wait() ? Step::nothing : Step::ended;
    if (down_.consume(static_cast<u64>(sent))) ring();
    return Step::moved;
  }

  void ring() {
    const u8 bell = 0;
    // A full buffer holds bells already.
    if (send(bells_, &bell, sizeof bell, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && !would_wait()) host_gone_ = true;
  }

  static bool spin(u64& since_ns) {
    if (!wire::Backoff::spare_cores()) return false;
    const u64 now_ns = wire::monotonic_ns();
    if (since_ns == 0) since_ns = now_ns;
    for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
    return now_ns - since_ns < kSpinNs;
  }

  void sleep() {
    up_.sleep(true);
    down_.sleep(true);
    const bool has_room = !up_.room().empty();
    const bool has_bytes = !down_.there().empty();
    const auto wanted = static_cast<short>((has_room ? POLLIN : 0) | (has_bytes ? POLLOUT : 0));
    // A socket of which nothing is wanted is asked all the same: its program may have gone.
    pollfd both[2] = {{program_, wanted, 0}, {bells_, POLLIN, 0}};
    if (!up_.broken() && !down_.broken()) poll(both, 2, -1);
    up_.sleep(false);
    down_.sleep(false);
    if (both[1].revents != 0) hear();
    program_gone_ = !has_room && (both[0].revents & (POLLHUP | POLLERR)) != 0;
  }

  void hear() {
    u8 heard[64];
    ssize_t got = 0;
    do got = recv(bells_, heard, sizeof heard, MSG_DONTWAIT);
    while (got == sizeof heard);
    host_gone_ = got == 0 || (got < 0 && !would_wait());
  }

  int program_;
  int bells_;
  wire::RingWriter up_;
  wire::RingReader down_;
  bool program_gone_ = false;  // with what it had yet to send
  bool host_gone_ = false;
};

}  // namespace

FirstEnd pump_window(int program, int bells, const wire::ByteRings& rings) {
  return Pump(program, bells, rings).run();
}

}  // namespace gpupool::guest::opengl
