// Sends rounds of a pattern from one piece of memory, by reference where the kernel does, and uses the memory
// again as soon as the notices allow: nothing else holds it back, least of all an answer of the receiver's.
// tests/vm/test_zero_copy.py runs it in a guest, and checks what arrives.
//   zero_copy_sender HOST PORT off|auto|always BYTES ROUNDS
// Prints one JSON object; exits with 1 when a wait for notices failed, or the connection.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "wire/cpp/zero_copy.hpp"

namespace gpupool::test {
namespace {

u64 used_us() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& time) {
    return static_cast<u64>(time.tv_sec) * 1'000'000 + static_cast<u64>(time.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

int dial(const char* host, const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<u16>(std::atoi(port)));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1 ||
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return -1;
  // Enough for a round that the receiver does not take.
  const int room = 1 << 20;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  return fd;
}

// Sends the rounds. The place that is reused is the same one each time, filled with the round's number.
bool send_rounds(int fd, wire::ZeroCopyMode mode, u64 bytes, u32 rounds) {
  wire::Window window;
  window.size = wire::kWindowMinBytes;
  window.base = static_cast<u8*>(
      mmap(nullptr, window.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (window.base == MAP_FAILED) return false;
  wire::ZeroCopy sender(mode, fd, {});
  const u64 at = wire::kStagingOffset;
  bool good = true;
  u64 fill_us = 0;
  const u64 start = used_us();
  for (u32 round = 0; good && round < rounds; ++round) {
    const u64 before = used_us();
    std::memset(window.base + at, static_cast<int>(round & 0xff), bytes);
    fill_us += used_us() - before;
    const u64 mark = round + 1;
    const u64 piece = sender.open(mark, at, bytes);
    good = sender.send_data_frame(0, window, at, bytes, piece) && sender.wait_until(mark) &&
           sender.wait_for(at, bytes);
  }
  const u64 cpu_us = used_us() - start - fill_us;
  const wire::ZeroCopyTotals& sent = sender.totals();
  std::printf(R"({"bytes": %llu, "copied_after_all": %llu, "refused": %llu, "cpu_us": %llu})"
              "\n",
              static_cast<unsigned long long>(sent.bytes.load()),
              static_cast<unsigned long long>(sent.late_copies.load()),
              static_cast<unsigned long long>(sent.refused.load()), static_cast<unsigned long long>(cpu_us));
  return good;
}

}  // namespace
}  // namespace gpupool::test

int main(int count, char** words) {
  using namespace gpupool;
  wire::ZeroCopyMode mode{};
  if (count != 6 || !wire::zero_copy_mode(words[3], mode)) {
    std::fprintf(stderr, "usage: zero_copy_sender HOST PORT off|auto|always BYTES ROUNDS\n");
    return 64;
  }
  const int fd = test::dial(words[1], words[2]);
  if (fd < 0) {
    std::perror("zero_copy_sender: cannot connect");
    return 69;
  }
  const u64 bytes = std::strtoull(words[4], nullptr, 10);
  const auto rounds = static_cast<u32>(std::strtoul(words[5], nullptr, 10));
  const bool good = test::send_rounds(fd, mode, bytes, rounds);
  close(fd);
  return good ? 0 : 1;
}
