// Sends by reference over real TCP sockets. On loopback the kernel copies in the end, but only on the way to
// the receiver: until then it reads our pages, and its notices come when the receiver has acknowledged.
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <future>
#include <thread>
#include <vector>

#include "wire/cpp/zero_copy.hpp"

namespace gpupool::test {
namespace {

using wire::ZeroCopy;
using wire::ZeroCopyMode;

constexpr u64 kPiece = 4u << 20;  // more than the small buffers of Pair hold
constexpr u64 kAt = wire::kStagingOffset;

struct Memory {
  Memory() {
    window.size = wire::kWindowMinBytes;
    window.base = static_cast<u8*>(mmap(nullptr, window.size, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    REQUIRE(window.base != MAP_FAILED);
  }
  ~Memory() { munmap(window.base, window.size); }
  void fill(u8 seed) const {
    for (u64 i = 0; i < kPiece; ++i) window.base[kAt + i] = static_cast<u8>(seed + i / 64);
  }
  wire::Window window;
};

// Two ends of a TCP connection over loopback, whose buffers together hold well under a piece.
struct Pair {
  Pair() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    const int little = 64 << 10;
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
    REQUIRE(bind(listener, reinterpret_cast<const sockaddr*>(&address), size) == 0);
    REQUIRE(listen(listener, 1) == 0);
    REQUIRE(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    near = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(connect(near, reinterpret_cast<const sockaddr*>(&address), size) == 0);
    far = accept(listener, nullptr, nullptr);
    REQUIRE(far >= 0);
    close(listener);
  }
  ~Pair() {
    close(near);
    close(far);
  }
  int near = -1, far = -1;
};

// What arrives of one frame.
std::vector<u8> receive(int fd) {
  wire::Frame frame;
  if (!wire::read_all(fd, &frame, sizeof frame)) return {};
  std::vector<u8> data(frame.size);
  return wire::read_all(fd, data.data(), data.size()) ? data : std::vector<u8>{};
}

bool same(const std::vector<u8>& data, u8 seed) {
  if (data.size() != kPiece) return false;
  for (u64 i = 0; i < kPiece; ++i)
    if (data[i] != static_cast<u8>(seed + i / 64)) return false;
  return true;
}

bool send_piece(ZeroCopy& sender, const Memory& memory, u64 mark = 1) {
  const u64 piece = sender.open(mark, kAt, kPiece);
  return sender.send_data_frame(0, memory.window, kAt, kPiece, piece);
}

// Rounds that use the same memory again as soon as they may.
void send_in_rounds(ZeroCopy& sender, const Memory& memory, int far, int rounds) {
  auto receiver = std::async(std::launch::async, [far, rounds] {
    for (int round = 0; round < rounds; ++round)
      if (!same(receive(far), static_cast<u8>(round * 7))) return false;
    return true;
  });
  for (int round = 0; round < rounds; ++round) {
    memory.fill(static_cast<u8>(round * 7));
    REQUIRE(send_piece(sender, memory, static_cast<u64>(round) + 1));
    REQUIRE(sender.wait_for(kAt, kPiece));
    REQUIRE(sender.wait_until(static_cast<u64>(round) + 1));
  }
  CHECK(receiver.get());
}

TEST_CASE("zero copy: memory is used again right after its notice, and every byte was right") {
  const Memory memory;
  const Pair pair;
  ZeroCopy sender(ZeroCopyMode::always, pair.near, {});
  send_in_rounds(sender, memory, pair.far, 40);
  CHECK(sender.totals().bytes > 30 * kPiece);
}

TEST_CASE("zero copy: nobody gets a piece back before the kernel has let go of it") {
  const Memory memory;
  const Pair pair;
  ZeroCopy sender(ZeroCopyMode::always, pair.near, {});
  memory.fill(3);
  const u64 piece = sender.open(5, kAt, kPiece);
  REQUIRE(piece != 0);
  auto sent = std::async(std::launch::async,
                         [&] { return sender.send_data_frame(0, memory.window, kAt, kPiece, piece); });
  auto by_place = std::async(std::launch::async, [&] { return sender.wait_for(kAt + kPiece - 1, 1); });
  auto by_mark = std::async(std::launch::async, [&] { return sender.wait_until(5); });
  // Others are not held up: what is beside it, what was sent before it, pinned memory.
  CHECK(sender.wait_for(kAt + kPiece, 4096));
  CHECK(sender.wait_until(4));
  CHECK(sender.wait_for(wire::kHeapOffset, 4096));
  CHECK(by_place.wait_for(std::chrono::milliseconds(300)) == std::future_status::timeout);
  CHECK(by_mark.wait_for(std::chrono::milliseconds(0)) == std::future_status::timeout);
  CHECK(same(receive(pair.far), 3));
  CHECK(sent.get());
  CHECK(by_place.get());
  CHECK(by_mark.get());
}

TEST_CASE("zero copy: a wait for a notice ends with the connection") {
  const Memory memory;
  const Pair pair;
  ZeroCopy sender(ZeroCopyMode::always, pair.near, {});
  const u64 piece = sender.open(1, kAt, kPiece);
  auto sent = std::async(std::launch::async,
                         [&] { return sender.send_data_frame(0, memory.window, kAt, kPiece, piece); });
  auto waits = std::async(std::launch::async, [&] { return sender.wait_until(1); });
  CHECK(waits.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  shutdown(pair.near, SHUT_RDWR);
  CHECK_FALSE(waits.get());
  CHECK_FALSE(sent.get());
}

TEST_CASE("zero copy: a socket whose kernel copies anyway stops asking, for good") {
  const Memory memory;
  const Pair pair;
  ZeroCopy sender(ZeroCopyMode::automatic, pair.near, {});
  send_in_rounds(sender, memory, pair.far, 12);
  const u64 before = sender.totals().bytes;
  CHECK(before > 0);
  CHECK(sender.totals().late_copies > 0);
  CHECK(sender.open(99, kAt, kPiece) == 0);
  send_in_rounds(sender, memory, pair.far, 3);
  CHECK(sender.totals().bytes == before);
}

TEST_CASE("zero copy: small pieces, other sockets and whoever says no are copied") {
  const Memory memory;
  const Pair pair;
  ZeroCopy sender(ZeroCopyMode::always, pair.near, {});
  CHECK(sender.open(1, kAt, wire::kZeroCopyFrom - 1) == 0);
  ZeroCopy refused(ZeroCopyMode::off, pair.near, {});
  CHECK(refused.open(1, kAt, kPiece) == 0);
  int both[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, both) == 0);  // what TLS and RDMA have in between
  ZeroCopy local(ZeroCopyMode::always, both[0], {});
  send_in_rounds(local, memory, both[1], 3);
  CHECK(local.totals().bytes == 0);
  // Of a session's connections one may be able and another not: each piece is accounted for by both.
  ZeroCopy mixed(ZeroCopyMode::always, pair.near, {both[0]});
  const u64 piece = mixed.open(1, kAt, 2 * wire::kZeroCopyFrom);
  REQUIRE(piece != 0);
  auto got =
      std::async(std::launch::async, [&] { return receive(both[1]).size() + receive(pair.far).size(); });
  CHECK(mixed.send_data_frame(1, memory.window, kAt, wire::kZeroCopyFrom, piece));
  CHECK(mixed.send_data_frame(0, memory.window, kAt + wire::kZeroCopyFrom, wire::kZeroCopyFrom, piece));
  CHECK(got.get() == 2 * wire::kZeroCopyFrom);
  CHECK(mixed.wait_until(1));
  close(both[0]);
  close(both[1]);
}

// Into a network namespace of this thread's own, where notices have next to no room.
const char* enter_small_namespace() {
  if (unshare(CLONE_NEWNET) != 0) return "no right to make a network namespace";
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ifreq lo{};
  std::strcpy(lo.ifr_name, "lo");
  lo.ifr_flags = IFF_UP | IFF_RUNNING;
  const bool up = ioctl(fd, SIOCSIFFLAGS, &lo) == 0;
  close(fd);
  if (!up) return "cannot set up loopback in a namespace";
  std::ofstream limit("/proc/sys/net/core/optmem_max");
  limit << 1 << std::flush;
  return limit ? nullptr : "this kernel has net.core.optmem_max for all namespaces together";
}

TEST_CASE("zero copy: without room for a notice a send is a copy, and counted") {
  const char* missing = nullptr;
  std::thread([&missing] {  // the namespace goes with its thread
    missing = enter_small_namespace();
    if (missing != nullptr) return;
    const Memory memory;
    const Pair pair;
    ZeroCopy sender(ZeroCopyMode::always, pair.near, {});
    send_in_rounds(sender, memory, pair.far, 5);
    CHECK(sender.totals().refused >= 5);
    CHECK(sender.totals().bytes == 0);
  })
      .join();
  if (missing != nullptr) MESSAGE("skipped: ", missing);
}

}  // namespace
}  // namespace gpupool::test
