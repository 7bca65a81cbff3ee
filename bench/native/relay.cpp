// A TCP relay that adds delay and nothing else: `gpupool-bench-relay HOST PORT DELAY_NS` listens on a free
// port of 127.0.0.1, prints it, and passes every connection's bytes on to HOST:PORT, each byte DELAY_NS after
// it came, in both directions. It ends when its standard input does. It stands in for netem, which containers
// seldom have.
//
// One thread a direction reads and stamps what came, one sends what is due, so bytes under way do not wait
// for each other and the bandwidth stays that of two loopback connections. A delay below what threads need to
// wake up cannot be had by sleeping: the last stretch is spun.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kPieceBytes = 256 << 10;
constexpr size_t kPieces = 512;                 // 128 MiB under way a direction: 100 GB/s for 1.2 ms
constexpr std::chrono::microseconds kSpin{60};  // what a sleep may oversleep on a busy machine
constexpr std::chrono::seconds kGiveUp{60};     // a peer that takes nothing for so long is gone

struct Piece {
  std::unique_ptr<char[]> bytes;
  size_t size = 0;  // 0: the sender has said all it had to say
  Clock::time_point due;
};

// The pieces of one direction, between its two threads.
class Queue {
 public:
  // The place for the next piece, when there is one; the reader alone calls it.
  Piece& place() {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return filled_ < kPieces || closed_; });
    Piece& piece = ring_[head_ % kPieces];
    if (!piece.bytes) piece.bytes = std::make_unique<char[]>(kPieceBytes);
    return piece;
  }

  void filled() {
    const std::lock_guard lock(mutex_);
    ++head_;
    ++filled_;
    more_.notify_one();
  }

  // The oldest piece; the sender alone calls it. Spins a moment before it sleeps: a wake-up is as long as a
  // short delay.
  Piece& oldest() {
    std::unique_lock lock(mutex_);
    more_.wait(lock, [&] { return filled_ > 0; });
    return ring_[tail_ % kPieces];
  }

  void sent() {
    const std::lock_guard lock(mutex_);
    ++tail_;
    --filled_;
    room_.notify_one();
  }

  // The sender has given up: the reader must not wait for room.
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    room_.notify_one();
  }

  bool closed() {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable more_, room_;
  std::array<Piece, kPieces> ring_;
  size_t head_ = 0, tail_ = 0, filled_ = 0;
  bool closed_ = false;
};

void wait_until(Clock::time_point due) {
  if (due - Clock::now() > kSpin) std::this_thread::sleep_until(due - kSpin);
  while (Clock::now() < due) {
  }
}

bool send_all(int fd, const char* bytes, size_t size) {
  while (size > 0) {
    const ssize_t done = send(fd, bytes, size, MSG_NOSIGNAL);
    if (done <= 0) return false;
    bytes += done;
    size -= static_cast<size_t>(done);
  }
  return true;
}

void read_side(int from, std::chrono::nanoseconds delay, Queue& queue) {
  for (;;) {
    Piece& piece = queue.place();
    if (queue.closed()) return;
    const ssize_t got = recv(from, piece.bytes.get(), kPieceBytes, 0);
    piece.due = Clock::now() + delay;
    piece.size = got > 0 ? static_cast<size_t>(got) : 0;
    queue.filled();
    if (got <= 0) return;
  }
}

void send_side(int to, Queue& queue) {
  prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
  for (;;) {
    Piece& piece = queue.oldest();
    wait_until(piece.due);
    const bool end = piece.size == 0;
    const bool good = !end && send_all(to, piece.bytes.get(), piece.size);
    queue.sent();
    if (good) continue;
    shutdown(to, end ? SHUT_WR : SHUT_RDWR);
    queue.close();
    return;
  }
}

void prepare(int fd) {
  const int yes = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  const timeval timeout{kGiveUp.count(), 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

void pass_on(int client, sockaddr_in there, std::chrono::nanoseconds delay) {
  const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (server < 0 || connect(server, reinterpret_cast<sockaddr*>(&there), sizeof there) != 0) {
    std::perror("gpupool-bench-relay: connect");
    close(client);
    if (server >= 0) close(server);
    return;
  }
  prepare(client);
  prepare(server);
  auto to_server = std::make_unique<Queue>();
  auto to_client = std::make_unique<Queue>();
  {
    std::vector<std::jthread> threads;
    threads.emplace_back([&] { read_side(client, delay, *to_server); });
    threads.emplace_back([&] { send_side(server, *to_server); });
    threads.emplace_back([&] { read_side(server, delay, *to_client); });
    send_side(client, *to_client);
  }
  close(client);
  close(server);
}

// A listening socket on a free port of 127.0.0.1; its port in `port`.
int listen_somewhere(unsigned& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof here;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&here), size) != 0 || listen(fd, 64) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&here), &size) != 0)
    return -1;
  port = ntohs(here.sin_port);
  return fd;
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) {
    std::fprintf(stderr, "usage: gpupool-bench-relay IPV4-ADDRESS PORT DELAY_NS\n");
    return 2;
  }
  sockaddr_in there{};
  there.sin_family = AF_INET;
  there.sin_port = htons(static_cast<std::uint16_t>(std::atoi(words[2])));
  const std::chrono::nanoseconds delay{std::atoll(words[3])};
  if (inet_pton(AF_INET, words[1], &there.sin_addr) != 1 || there.sin_port == 0 || delay.count() < 0) {
    std::fprintf(stderr, "gpupool-bench-relay: '%s' '%s' '%s' is no address, port and delay\n", words[1],
                 words[2], words[3]);
    return 2;
  }
  unsigned port = 0;
  const int listening = listen_somewhere(port);
  if (listening < 0) {
    std::perror("gpupool-bench-relay: listen");
    return 1;
  }
  std::printf("%u\n", port);
  std::fflush(stdout);
  for (;;) {
    std::array<pollfd, 2> wanted{{{listening, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}}};
    if (poll(wanted.data(), wanted.size(), -1) < 0) continue;
    if (wanted[1].revents != 0) std::_Exit(0);  // connections end with us; their threads hold nothing else
    if (wanted[0].revents == 0) continue;
    const int client = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
    if (client >= 0) std::thread(pass_on, client, there, delay).detach();
  }
}
