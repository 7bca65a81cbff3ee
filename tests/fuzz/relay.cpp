// Target: gpupool-opengl between a program and a host that it believes neither. The first byte chooses: what
// a host answers to the relay's Hello (guest/opengl/dial.hpp), or bytes that are passed on both ways, by two
// peers that end in any order (guest/opengl/pump.hpp).
//
// What must hold: a session is only had from a host that said so, and what comes out
// of the relay is what went in, in order.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "guest/opengl/dial.hpp"
#include "guest/opengl/pump.hpp"
#include "wire/cpp/hello.hpp"

using namespace gpupool;
using namespace gpupool::guest;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

// A host at a unix socket of this process's own, which answers each connection with the same bytes.
class Host {
 public:
  Host() : listener_(socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = "/tmp/gpupool-fuzz-relay-" + std::to_string(getpid());
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    unlink(path.c_str());
    require(bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    require(listen(listener_, 8) == 0);
    setenv("GPUPOOL_ENDPOINT", ("unix:" + path).c_str(), 1);
    path_ = path;
  }
  ~Host() { unlink(path_.c_str()); }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  void answer_once(const u8* data, size_t size) const {
    const int connection = accept(listener_, nullptr, nullptr);
    require(connection >= 0);
    wire::Hello hello;
    require(recv(connection, &hello, sizeof hello, MSG_WAITALL) == sizeof hello);
    require(hello.kind == wire::SessionKind::opengl);
    static_cast<void>(send(connection, data, size, MSG_NOSIGNAL));
    close(connection);
  }

 private:
  int listener_;
  std::string path_;
};

// Whether such a host has given a session.
bool is_welcome(const u8* data, size_t size) {
  for (size_t at = 0; size - at >= sizeof(wire::Welcome); at += sizeof(wire::Welcome)) {
    wire::Welcome one;
    std::memcpy(&one, data + at, sizeof one);
    if (one.magic != wire::kWelcomeMagic) return false;
    if (one.status != wire::WelcomeStatus::waiting)
      return one.status == wire::WelcomeStatus::ok && one.window_bytes == 0;
  }
  return false;
}

void dial_host(const u8* data, size_t size) {
  static const Host host;
  // Half of the inputs begin with an answer that is whole, changed here and there.
  std::vector<u8> answer(data, data + size);
  if (size > 1 && (data[0] & 1) != 0) {
    wire::Welcome welcome;
    welcome.bytes = sizeof welcome;
    auto* bytes = reinterpret_cast<u8*>(&welcome);
    for (size_t i = 1; i + 2 < size && i < 24; i += 3)
      bytes[(data[i] | size_t{data[i + 1]} << 8) % sizeof welcome] = data[i + 2];
    answer.insert(answer.begin(), bytes, bytes + sizeof welcome);
  }
  std::thread other([&] { host.answer_once(answer.data(), answer.size()); });
  opengl::Program program;
  opengl::Session session;
  std::string why;
  const bool has = opengl::dial(program, session, why);
  other.join();
  require(has == is_welcome(answer.data(), answer.size()));
  if (has) require(session.socket.get() >= 0 && session.shared);
  if (!has) require(session.socket.get() < 0);
}

struct Pair {
  int outside = -1;
  int relay = -1;
};

Pair make_pair() {
  int ends[2];
  require(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  return {ends[0], ends[1]};
}

std::vector<u8> rest_of(int fd) {
  std::vector<u8> all;
  u8 piece[4096];
  for (ssize_t got; (got = recv(fd, piece, sizeof piece, MSG_DONTWAIT)) > 0;)
    all.insert(all.end(), piece, piece + got);
  return all;
}

// One peer's part: its bytes in pieces, then its end.
void play(int fd, const std::vector<u8>& bytes, u8 how) {
  const size_t piece =
      size_t{64} << (how & 7);  // many small ones would not fit into a socket that nobody reads
  for (size_t at = 0; at < bytes.size(); at += piece) {
    const size_t size = std::min(piece, bytes.size() - at);
    if (send(fd, bytes.data() + at, size, MSG_NOSIGNAL) <= 0) break;
  }
  shutdown(fd, (how & 8) != 0 ? SHUT_RDWR : SHUT_WR);
}

void pump_bytes(const u8* data, size_t size) {
  if (size < 3) return;
  const u8 up_how = data[0];
  const u8 down_how = data[1];
  const size_t cut = std::min<size_t>(data[2] * size_t{16}, size - 3);
  const std::vector<u8> up(data + 3, data + 3 + cut);
  const std::vector<u8> down(data + 3 + cut, data + size);
  const Pair program = make_pair();
  const Pair host = make_pair();
  // The pump's own thread is this one; a peer may have ended before it begins, or speak meanwhile.
  std::thread late;
  if ((up_how & 16) != 0)
    late = std::thread([&] { play(program.outside, up, up_how); });
  else
    play(program.outside, up, up_how);
  play(host.outside, down, down_how);
  opengl::pump(program.relay, host.relay);
  if (late.joinable()) late.join();
  const bool whole = (up_how & 8) == 0 && (down_how & 8) == 0;
  const std::vector<u8> came_up = rest_of(host.outside);
  const std::vector<u8> came_down = rest_of(program.outside);
  require(came_up.size() <= up.size() && std::equal(came_up.begin(), came_up.end(), up.begin()));
  require(came_down.size() <= down.size() && std::equal(came_down.begin(), came_down.end(), down.begin()));
  require(!whole || (came_up == up && came_down == down));
  for (const int fd : {program.outside, program.relay, host.outside, host.relay}) close(fd);
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  if (size == 0) return 0;
  if ((data[0] & 3) == 0)
    dial_host(data + 1, size - 1);
  else
    pump_bytes(data + 1, size - 1);
  return 0;
}
