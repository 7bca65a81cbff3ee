// Both ends of OpenGL's way through a window, and what becomes of the bytes in it when one of them ends.
#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "guest/opengl/window.hpp"
#include "hostd/renderer/window.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::test {
namespace {

using guest::opengl::FirstEnd;
using guest::opengl::pump_window;
using renderer::WindowConnection;
using wire::ByteRings;
using wire::kByteRingsPage;

constexpr u64 kEach = 64 * 1024;
constexpr u64 kEver = 5'000'000'000;

struct Pair {
  Pair() { REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0); }
  ~Pair() {
    leave(0);
    leave(1);
  }
  void leave(int which) {
    if (ends[which] >= 0) close(ends[which]);
    ends[which] = -1;
  }
  int ends[2];
};

// A slot, the bells, and the socket of a program; [0] is the guest's end of each pair.
struct World {
  World()
      : size(kByteRingsPage + 2 * kEach),
        slot(static_cast<u8*>(std::aligned_alloc(kByteRingsPage, size)), std::free) {
    std::fill_n(slot.get(), size, u8{0});
  }
  ByteRings rings() { return ByteRings(slot.get(), size); }
  WindowConnection host() {
    return {bells.ends[1], rings(), [] {}, [] { return -1; }};
  }
  void relay() {
    guest = std::thread([this] { first = pump_window(program.ends[0], bells.ends[0], rings()); });
  }

  u64 size;
  std::unique_ptr<u8, void (*)(void*)> slot;
  Pair bells;
  Pair program;
  std::thread guest;
  FirstEnd first = FirstEnd::program;
};

std::vector<u8> some_bytes(u64 count) {
  std::vector<u8> bytes(count);
  std::mt19937 random(11);
  for (u8& byte : bytes) byte = static_cast<u8>(random());
  return bytes;
}

}  // namespace

TEST_CASE("what the host wrote last gets to a program that reads it late") {
  World world;
  world.relay();
  const std::vector<u8> sent = some_bytes(700'000);  // more than the ring and the program's socket hold
  std::thread host([&] {
    WindowConnection connection = world.host();
    REQUIRE(connection.write(sent.data(), sent.size()));
    connection.finish();
    // As hostd does for the next session.
    std::fill_n(world.slot.get(), world.size, u8{0});
    world.bells.leave(1);
  });
  std::vector<u8> got;
  u8 piece[4096];
  while (got.size() < sent.size()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    const ssize_t count = recv(world.program.ends[1], piece, sizeof piece, 0);
    REQUIRE(count > 0);
    got.insert(got.end(), piece, piece + count);
  }
  host.join();
  world.guest.join();
  CHECK(got == sent);
  CHECK(world.first == FirstEnd::host);
}

TEST_CASE("nothing is written into the slot after the host's end") {
  World world;
  world.bells.leave(1);
  world.relay();
  world.guest.join();  // though the program is there and has said nothing
  CHECK(world.first == FirstEnd::host);
  World other;
  other.bells.leave(1);
  other.rings().up->reader_sleeps = 1;  // the host that slept has gone: its end shows when it is told
  const std::vector<u8> much = some_bytes(30'000);
  REQUIRE(send(other.program.ends[1], much.data(), much.size(), MSG_NOSIGNAL) == 30'000);
  other.relay();
  other.guest.join();
  CHECK(other.first == FirstEnd::host);
  CHECK(other.rings().up->written <= much.size());
}

TEST_CASE("a client that takes nothing keeps the host for as long as is said, one that has left not at all") {
  World world;
  WindowConnection connection = world.host();
  const u64 since_ns = wire::monotonic_ns();
  REQUIRE(connection.write("end", 3));
  connection.finish(20'000'000);
  const u64 waited_ns = wire::monotonic_ns() - since_ns;
  CHECK(waited_ns >= 20'000'000);
  CHECK(waited_ns < kEver);
  world.bells.leave(0);
  connection.finish(10 * kEver);
  CHECK(wire::monotonic_ns() - since_ns < kEver);
}

}  // namespace gpupool::test
