// The vsock device between a guest's rings and real sockets, without vhost-user and epoll around it.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "bench/native/vsock_driver.hpp"
#include "hostd/vsock/device.hpp"

namespace gpupool::vsock {
namespace {

using Driver = bench::VsockDriver;
constexpr u64 kBytes = 4 << 20, kCid = 42;
constexpr u32 kRoom = 4096, kSlots = 64, kPacket = 2 << 20;

struct Got {
  Header header;
  std::string data;
};

// A guest, the device, and the host's ends of its sockets.
class World : public Surroundings {
 public:
  World() : bytes_(static_cast<std::byte*>(std::aligned_alloc(4096, kBytes))), driver(bytes_.get(), 128) {
    GuestMemory memory;
    memory.add({Driver::kGuestBase, kBytes, Driver::kUserBase, bytes_.get()});
    device.set_memory(std::move(memory));
    boot();
  }

  void boot() {
    driver.boot();
    for (u32 slot = 0; slot < kSlots; ++slot) give(static_cast<u16>(slot));
    std::string error;
    for (u32 ring = 0; ring < 3; ++ring) REQUIRE(device.start(ring, driver.place(ring), 0, true, error));
  }
  void give(u16 slot) {
    driver.describe(0, slot, Driver::guest(Driver::kDataOffset + slot * (kRoom + 64)), kRoom + kHeaderBytes,
                    Driver::kWrite, 0);
    driver.offer(0, slot);
  }

  bool connect_port(u64 serial, u32 port) override {
    if (port == 1) return false;
    asked.push_back(serial);
    return true;
  }
  bool watch(u64 serial, int socket) override {
    watched[serial] = socket;
    return true;
  }
  void watch_room(u64, int, bool begin) override { rooms.push_back(begin); }
  void call(u32) override { ++calls; }

  // The host's end of a pair; the device's is watched.
  static Descriptor pair(Descriptor& other) {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    other.reset(ends[1]);
    return Descriptor(ends[0]);
  }
  Descriptor accept() {
    REQUIRE(!asked.empty());
    Descriptor theirs;
    Descriptor ours = pair(theirs);
    device.connected(asked.front(), std::move(theirs));
    asked.pop_front();
    return ours;
  }

  void send(u32 guest_port, u32 host_port, Op op, std::string_view data = "", u32 flags = 0) {
    Header header{
        kCid,  kHostCid, guest_port, host_port, static_cast<u32>(data.size()), kStream, static_cast<u16>(op),
        flags, buffer,   forwarded};
    std::memcpy(driver.at(kPacket), &header, sizeof header);
    std::memcpy(driver.at(kPacket + kHeaderBytes), data.data(), data.size());
    driver.describe(1, 0, Driver::guest(kPacket), static_cast<u32>(kHeaderBytes + data.size()), 0, 0);
    driver.offer(1, 0);
    turn();
  }
  // What epoll would say, until nothing happens any more.
  void turn() {
    for (int i = 0; i < 100; ++i) {
      std::vector<std::pair<u64, short>> events;
      for (const auto& [serial, socket] : watched) {
        pollfd one{socket, POLLIN | POLLOUT | POLLRDHUP, 0};
        if (fcntl(socket, F_GETFD) >= 0 && poll(&one, 1, 0) > 0) events.emplace_back(serial, one.revents);
      }
      for (const auto& [serial, seen] : events)
        device.ready(serial, {(seen & POLLIN) != 0, (seen & POLLOUT) != 0, (seen & POLLRDHUP) != 0,
                              (seen & POLLHUP) != 0});
      if (!device.turn() && i > 1) return;
    }
  }
  std::vector<Got> receive() {
    turn();
    std::vector<Got> all;
    for (Driver::Used used; driver.take(0, used);) {
      Got got;
      const std::byte* at = driver.at(Driver::kDataOffset + used.head * (kRoom + 64));
      std::memcpy(&got.header, at, kHeaderBytes);
      got.data.assign(reinterpret_cast<const char*>(at) + kHeaderBytes, used.bytes - kHeaderBytes);
      all.push_back(std::move(got));
      give(static_cast<u16>(used.head));
    }
    return all;
  }
  Op next_op() {
    const std::vector<Got> all = receive();
    return all.size() == 1 ? static_cast<Op>(all[0].header.op) : Op::invalid;
  }

  struct Free {
    void operator()(std::byte* at) const { std::free(at); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  std::map<u64, int> watched;
  std::deque<u64> asked;
  std::vector<bool> rooms;  // what was asked of watch_room()
  int calls = 0;
  u32 buffer = 1 << 16, forwarded = 0;
  Driver driver;
  Device device{kCid, *this};
};

TEST_CASE("a connection of the guest's, both ways") {
  World world;
  world.send(10, 7000, Op::request);
  const Descriptor host = world.accept();
  CHECK(world.next_op() == Op::response);
  world.send(10, 7000, Op::data, "question");
  char text[100] = {};
  CHECK(recv(host.get(), text, sizeof text, 0) == 8);
  CHECK(std::string(text) == "question");
  REQUIRE(send(host.get(), "answer", 6, 0) == 6);
  const std::vector<Got> got = world.receive();
  REQUIRE(got.size() == 1);
  CHECK(got[0].data == "answer");
  CHECK(got[0].header.forwarded == 8);
  CHECK(got[0].header.buffer == Credit::kBuffer);
  CHECK(world.calls > 0);
}

TEST_CASE("what cannot be connected is refused") {
  World world;
  world.send(10, 1, Op::request);
  CHECK(world.next_op() == Op::reset);
  world.send(10, 7000, Op::request);
  world.device.connected(world.asked.front(), Descriptor());
  CHECK(world.next_op() == Op::reset);
  CHECK(world.device.connections() == 0);
}

TEST_CASE("a guest that gives up before the socket is connected") {
  World world;
  world.send(10, 7000, Op::request);
  world.send(10, 7000, Op::reset);
  const Descriptor host = world.accept();
  char byte = 0;
  CHECK(recv(host.get(), &byte, 1, 0) == 0);
  CHECK(world.receive().empty());
}

TEST_CASE("no word of the guest's before it was answered") {
  World world;
  world.send(10, 7000, Op::request);
  world.send(10, 7000, Op::data, "early");
  CHECK(world.next_op() == Op::reset);
  CHECK(world.device.connections() == 0);
}

TEST_CASE("a large message fills many buffers by one read, and gives back what it does not need") {
  World world;
  world.send(10, 7000, Op::request);
  const Descriptor host = world.accept();
  CHECK(world.next_op() == Op::response);
  std::string data(60000, 'a');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7 + i / 251);
  REQUIRE(send(host.get(), data.data(), data.size(), 0) == static_cast<ssize_t>(data.size()));
  std::string all;
  for (const Got& got : world.receive()) {
    CHECK(got.data.size() <= kRoom);
    all += got.data;
  }
  CHECK(all == data);
  for (int round = 0; round < 300; ++round) {  // around the rings, many times
    REQUIRE(send(host.get(), "x", 1, 0) == 1);
    world.forwarded = static_cast<u32>(data.size()) + static_cast<u32>(round);
    world.send(10, 7000, Op::credit_update);
    const std::vector<Got> got = world.receive();
    REQUIRE(got.size() == 1);
    REQUIRE(got[0].data == "x");
  }
}

TEST_CASE("a guest without buffers is waited for") {
  World world;
  world.send(10, 7000, Op::request);
  const Descriptor host = world.accept();
  const std::string data(kRoom, 'a');
  world.buffer = 1 << 24;
  world.send(10, 7000, Op::credit_update);
  CHECK(world.next_op() == Op::response);
  u64 sent = 0;
  for (; ::send(host.get(), data.data(), data.size(), 0) > 0; world.turn()) sent += data.size();
  CHECK(sent > kSlots * kRoom);
  CHECK_FALSE(world.device.turn());  // nothing to do until the guest has
  u64 got = 0;
  for (int i = 0; i < 1000 && got < sent; ++i)
    for (const Got& one : world.receive()) got += one.data.size();
  CHECK(got == sent);
}

TEST_CASE("an end that was told with the last bytes is not told again") {
  World world;
  world.send(10, 7000, Op::request);
  const Descriptor host = world.accept();
  CHECK(world.next_op() == Op::response);
  REQUIRE(send(host.get(), "bye", 3, 0) == 3);
  REQUIRE(shutdown(host.get(), SHUT_WR) == 0);
  const u64 serial = world.watched.begin()->first;
  world.watched.clear();  // epoll tells each change once
  world.device.ready(serial, {.readable = true, .ended = true});
  const std::vector<Got> got = world.receive();
  REQUIRE(got.size() == 2);
  CHECK(got[0].data == "bye");
  CHECK(got[1].header.op == static_cast<u16>(Op::shutdown));
  CHECK(got[1].header.flags == kNoSend);
}

TEST_CASE("a socket that is full is asked again only when it has room") {
  World world;
  world.send(10, 7000, Op::request);
  const Descriptor host = world.accept();
  CHECK(world.next_op() == Op::response);
  std::string data(60000, 'a');
  u64 sent = 0;
  while (world.rooms.empty()) {
    world.send(10, 7000, Op::data, data);
    sent += data.size();
  }
  CHECK(world.rooms == std::vector<bool>{true});
  u64 got = 0;
  for (std::vector<char> taken(1 << 20); got < sent; world.turn()) {
    const ssize_t count = recv(host.get(), taken.data(), taken.size(), 0);
    REQUIRE(count > 0);
    got += static_cast<u64>(count);
  }
  CHECK(world.rooms == std::vector<bool>{true, false});
}

TEST_CASE("a caller of the host's whom the guest does not answer") {
  World world;
  Descriptor theirs;
  const Descriptor host = World::pair(theirs);
  REQUIRE(world.device.offer(std::move(theirs), 5000));
  CHECK(world.next_op() == Op::request);
  const auto deadline = world.device.deadline();
  world.device.expire(deadline - std::chrono::seconds(1));
  CHECK(world.device.connections() == 1);
  world.device.expire(deadline);
  CHECK(world.device.connections() == 0);
  CHECK(world.next_op() == Op::reset);
  char byte = 0;
  CHECK(recv(host.get(), &byte, 1, 0) == 0);
  CHECK(world.device.deadline() == Device::Clock::time_point::max());
}

TEST_CASE("callers get ports of their own") {
  World world;
  std::vector<Descriptor> hosts;
  for (int i = 0; i < 5; ++i) {
    Descriptor theirs;
    hosts.push_back(World::pair(theirs));
    REQUIRE(world.device.offer(std::move(theirs), 5000));
  }
  std::map<u32, int> ports;
  for (const Got& got : world.receive()) ++ports[got.header.source_port];
  CHECK(ports.size() == 5);
}

TEST_CASE("a guest that starts anew is told that what it had is gone") {
  World world;
  world.device.owe_transport_reset();
  world.driver.describe(2, 0, Driver::guest(kPacket), 4, Driver::kWrite, 0);
  world.turn();
  CHECK(world.driver.used_index(2) == 0);
  std::memset(world.driver.at(kPacket), 0xff, 4);
  world.driver.offer(2, 0);
  world.turn();
  CHECK(world.driver.used_index(2) == 1);
  CHECK(std::to_integer<int>(*world.driver.at(kPacket)) == 0);
}

TEST_CASE("memory that moves away breaks the rings, and others are found in it") {
  World world;
  world.send(10, 7000, Op::request);
  const Descriptor host = world.accept();
  world.device.set_memory(GuestMemory());
  CHECK_FALSE(world.device.serving());
  CHECK(world.device.connections() == 0);
}

}  // namespace
}  // namespace gpupool::vsock
