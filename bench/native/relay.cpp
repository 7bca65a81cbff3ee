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

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kPieceBytes = 256 << 10;       // read at once at most
constexpr size_t kRingBytes = 8 << 20;          // under way a direction: 32 GB/s for 250 us, and in the cache
constexpr size_t kPieces = 4096;                // under way a direction, however short
constexpr std::chrono::microseconds kSpin{60};  // what a sleep may oversleep on a busy machine
constexpr std::chrono::seconds kGiveUp{60};     // a peer that takes nothing for so long is gone

struct Piece {
  size_t size = 0;  // 0: the sender has said all it had to say
  Clock::time_point due;
};

// What is under way in one direction, between its two threads. Bytes lie in a ring in the order of the
// pieces.
class Queue {
 public:
  // Where the next bytes go: at least one, in one stretch. The reader alone calls it, and waits for room.
  std::span<char> room() {
    for (;;) {
      const size_t tail = tail_.load();
      const size_t sent_bytes = sent_bytes_.load();
      const size_t begin = filled_bytes_ % kRingBytes;
      const size_t free = kRingBytes - (filled_bytes_ - sent_bytes);
      const size_t pieces = head_.load(std::memory_order_relaxed) - tail;
      if (free > 0 && pieces < kPieces)
        return {bytes_.get() + begin, std::min({free, kRingBytes - begin, kPieceBytes})};
      tail_.wait(tail);
    }
  }

  void fill(size_t size, Clock::time_point due) {
    pieces_[head_.load(std::memory_order_relaxed) % kPieces] = {size, due};
    filled_bytes_ += size;
    head_.fetch_add(1);
    head_.notify_one();
  }

  // The oldest piece; the sender alone calls it, and waits for one.
  Piece oldest(Clock::duration spin) {
    const size_t tail = tail_.load(std::memory_order_relaxed);
    const Clock::time_point until = Clock::now() + spin;
    while (head_.load() == tail) {
      if (Clock::now() >= until) head_.wait(tail);
    }
    return pieces_[tail % kPieces];
  }

  const char* oldest_bytes() const {
    return bytes_.get() + sent_bytes_.load(std::memory_order_relaxed) % kRingBytes;
  }

  void sent(size_t size) {
    sent_bytes_.fetch_add(size);  // before the count that the reader waits for
    tail_.fetch_add(1);
    tail_.notify_one();
  }

 private:
  std::atomic<size_t> head_{0}, tail_{0};  // pieces filled, pieces sent
  std::atomic<size_t> sent_bytes_{0};
  size_t filled_bytes_ = 0;  // the reader's
  std::array<Piece, kPieces> pieces_;
  std::unique_ptr<char[]> bytes_ = std::make_unique<char[]>(kRingBytes);
};

// How long threads look for more before they sleep. A wake-up takes as long as a short delay; a long delay
// hides it.
Clock::duration spin_of(std::chrono::nanoseconds delay) {
  constexpr unsigned kEnoughCores = 8;
  const bool spin =
      delay < std::chrono::microseconds(100) && std::thread::hardware_concurrency() >= kEnoughCores;
  return spin ? std::chrono::microseconds(300) : std::chrono::microseconds(0);
}

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

// recv(), which looks for a while before it sleeps.
ssize_t receive(int from, std::span<char> place, Clock::duration spin) {
  const Clock::time_point until = Clock::now() + spin;
  while (Clock::now() < until) {
    const ssize_t got = recv(from, place.data(), place.size(), MSG_DONTWAIT);
    if (got >= 0 || (errno != EAGAIN && errno != EINTR)) return got;
  }
  ssize_t got = 0;
  do got = recv(from, place.data(), place.size(), 0);
  while (got < 0 && errno == EINTR);
  return got;
}

void read_side(int from, std::chrono::nanoseconds delay, Queue& queue) {
  const Clock::duration spin = spin_of(delay);
  for (bool more = true; more;) {
    const ssize_t got = receive(from, queue.room(), spin);
    more = got > 0;
    queue.fill(more ? static_cast<size_t>(got) : 0, Clock::now() + delay);
  }
}

// Sends what is due, until the reader has said that nothing comes any more. When nobody takes it, what is
// left is thrown away, and the reader is told to stop.
void send_side(int from, int to, std::chrono::nanoseconds delay, Queue& queue) {
  prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
  const Clock::duration spin = spin_of(delay);
  bool taken = true;
  for (bool more = true; more;) {
    const Piece piece = queue.oldest(spin);
    more = piece.size > 0;
    if (taken && more) {
      wait_until(piece.due);
      taken = send_all(to, queue.oldest_bytes(), piece.size);
      if (!taken) shutdown(from, SHUT_RD);
    }
    queue.sent(piece.size);
  }
  shutdown(to, SHUT_WR);
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
    threads.emplace_back([&] { send_side(client, server, delay, *to_server); });
    threads.emplace_back([&] { read_side(server, delay, *to_client); });
    send_side(server, client, delay, *to_client);
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
