// The vsock device's view of a guest's memory and rings: honest ones of any shape, and lies.
#include <doctest/doctest.h>

#include <array>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>

#include "bench/native/vsock_driver.hpp"
#include "hostd/vsock/credit.hpp"
#include "hostd/vsock/host_door.hpp"

namespace gpupool::worker {
void drain_standard_error() {}  // what the log waits for in a worker
}  // namespace gpupool::worker

namespace gpupool::vsock {
namespace {

using Driver = bench::VsockDriver;
constexpr u64 kBytes = 1 << 20, kHalf = kBytes / 2;
constexpr u32 kRing = 1;

// A guest of two regions beside each other, and one ring that is served.
struct Guest {
  explicit Guest(bool event_index = false, u32 entries = 8, u16 next = 0)
      : bytes(static_cast<std::byte*>(std::aligned_alloc(4096, kBytes))), driver(bytes.get(), entries) {
    std::memset(bytes.get(), 0, kBytes);
    memory.add({Driver::kGuestBase, kHalf, Driver::kUserBase, bytes.get()});
    memory.add({Driver::kGuestBase + kHalf, kHalf, Driver::kUserBase + kHalf, bytes.get() + kHalf});
    std::string error;
    REQUIRE(queue.start(memory, driver.place(kRing), next, event_index, error));
  }

  struct Free {
    void operator()(std::byte* at) const { std::free(at); }
  };
  std::unique_ptr<std::byte, Free> bytes;
  Driver driver;
  GuestMemory memory;
  Virtqueue queue;
  Chain chain;
};

TEST_CASE("memory is what lies in a region as a whole") {
  Guest guest;
  std::vector<iovec> parts;
  CHECK(guest.memory.slice(Driver::kGuestBase, kBytes, parts));
  CHECK(parts.size() == 2);
  CHECK(parts[1].iov_base == guest.driver.at(kHalf));
  for (const auto& [address, bytes] : {std::pair{Driver::kGuestBase - 1, u64{1}},
                                       {Driver::kGuestBase, kBytes + 1},
                                       {Driver::kGuestBase + kBytes, u64{1}},
                                       {~u64{0}, u64{2}},
                                       {Driver::kGuestBase, ~u64{0}}}) {
    CHECK_FALSE(guest.memory.slice(address, bytes, parts));
    CHECK(parts.size() == 2);
  }
  CHECK(guest.memory.at_user(Driver::kUserBase + kHalf, kHalf) == guest.driver.at(kHalf));
  CHECK(guest.memory.at_user(Driver::kUserBase + kHalf - 1, 2) == nullptr);
  CHECK(guest.memory.at_guest(Driver::kGuestBase + kHalf - 1, 2) == nullptr);
  CHECK(guest.memory.at_user(~u64{0}, 2) == nullptr);
}

TEST_CASE("a chain of any shape is its parts in order") {
  Guest guest;
  guest.driver.describe(kRing, 3, guest.driver.guest(kHalf - 8), 16, Driver::kNext, 5);  // across the regions
  guest.driver.describe(kRing, 5, guest.driver.guest(0x10000), 0, Driver::kNext, 1);
  guest.driver.describe(kRing, 1, guest.driver.guest(0x20000), 7, Driver::kNext | Driver::kWrite, 0);
  guest.driver.describe(kRing, 0, guest.driver.guest(0x30000), 1, Driver::kWrite, 0);
  CHECK_FALSE(guest.queue.pop(guest.chain));
  guest.driver.offer(kRing, 3);
  REQUIRE(guest.queue.pop(guest.chain));
  CHECK(guest.chain.head == 3);
  CHECK(guest.chain.readable.size() == 2);
  CHECK(guest.chain.readable_bytes == 16);
  CHECK(guest.chain.writable.size() == 2);
  CHECK(guest.chain.writable_bytes == 8);
  CHECK(guest.chain.writable[1].iov_base == guest.driver.at(0x30000));
  CHECK_FALSE(guest.queue.pop(guest.chain));
}

TEST_CASE("an indirect table is a chain") {
  Guest guest;
  guest.driver.write_entry(0x10000, guest.driver.guest(0x20000), 5, Driver::kNext, 1);
  guest.driver.write_entry(0x10010, guest.driver.guest(0x20000), 6, Driver::kWrite, 0);
  guest.driver.describe(kRing, 0, guest.driver.guest(0x10000), 32, Driver::kIndirect, 0);
  guest.driver.offer(kRing, 0);
  REQUIRE(guest.queue.pop(guest.chain));
  CHECK(guest.chain.readable_bytes == 5);
  CHECK(guest.chain.writable_bytes == 6);
}

TEST_CASE("what was popped last can be given back") {
  Guest guest;
  for (u16 i = 0; i < 3; ++i) {
    guest.driver.describe(kRing, i, guest.driver.guest(0x10000), 10u + i, 0, 0);
    guest.driver.offer(kRing, i);
  }
  for (int i = 0; i < 3; ++i) REQUIRE(guest.queue.pop(guest.chain));
  guest.queue.unpop(2);
  REQUIRE(guest.queue.pop(guest.chain));
  CHECK(guest.chain.readable_bytes == 11);
  CHECK(guest.queue.stop() == 2);
}

TEST_CASE("the guest is called when it wants to be") {
  Driver::Used used;
  SUBCASE("by a flag") {
    Guest guest;
    guest.queue.push(4, 9);
    CHECK_FALSE(guest.driver.take(kRing, used));
    CHECK(guest.queue.publish());
    CHECK_FALSE(guest.queue.publish());
    REQUIRE(guest.driver.take(kRing, used));
    CHECK(used.head == 4);
    CHECK(used.bytes == 9);
    guest.driver.set_flags(kRing, 1);
    guest.queue.push(4, 9);
    CHECK_FALSE(guest.queue.publish());
  }
  SUBCASE("by an index, around the end of the counter") {
    Guest guest(true);
    u16 index = 0;
    guest.queue.push(0, 0);
    CHECK(guest.queue.publish());  // the first always
    for (++index; index < 10; ++index) {
      guest.driver.wish_call(kRing, static_cast<u16>(index + 1));
      guest.queue.push(0, 0);
      CHECK_FALSE(guest.queue.publish());
      guest.driver.wish_call(kRing, index);
      guest.queue.push(0, 0);
      ++index;
      guest.driver.wish_call(kRing, index);
      CHECK(guest.queue.publish());
    }
    for (int i = 0; i < 70000; ++i) {
      guest.driver.wish_call(kRing, index);
      ++index;
      guest.queue.push(0, 0);
      CHECK(guest.queue.publish());
    }
  }
}

TEST_CASE("more is asked for by index") {
  Guest guest(true);
  guest.driver.describe(kRing, 0, guest.driver.guest(0x10000), 1, 0, 0);
  CHECK_FALSE(guest.queue.arm());
  CHECK(guest.driver.wished_kick(kRing) == 0);
  guest.driver.offer(kRing, 0);
  REQUIRE(guest.queue.pop(guest.chain));
  CHECK_FALSE(guest.queue.arm());
  CHECK(guest.driver.wished_kick(kRing) == 1);
  guest.driver.offer(kRing, 0);
  CHECK(guest.queue.arm());
}

TEST_CASE("indices go on around their end") {
  Guest guest(false, 8, 65530);
  guest.driver.describe(kRing, 0, guest.driver.guest(0x10000), 1, 0, 0);
  guest.driver.set_index(kRing, 65534);
  for (int i = 0; i < 4; ++i) CHECK(guest.queue.pop(guest.chain));
  guest.driver.set_index(kRing, 3);
  for (int i = 0; i < 5; ++i) CHECK(guest.queue.pop(guest.chain));
  CHECK_FALSE(guest.queue.pop(guest.chain));
  CHECK(guest.queue.reason().empty());
  CHECK(guest.queue.stop() == 3);
}

TEST_CASE("a ring that lies is broken for good") {
  const u64 outside = Driver::kGuestBase + kBytes;
  const std::pair<const char*, std::function<void(Driver&)>> lies[] = {
      {"an index ahead of the queue", [](Driver& d) { d.set_index(kRing, 9); }},
      {"a head beyond the table", [](Driver& d) { d.offer(kRing, 8); }},
      {"a chain to beyond the table",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10000), 1, Driver::kNext, 8);
         d.offer(kRing, 0);
       }},
      {"a loop",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10000), 1, Driver::kNext, 1);
         d.describe(kRing, 1, d.guest(0x10000), 1, Driver::kNext, 0);
         d.offer(kRing, 0);
       }},
      {"a loop of nothing",
       [](Driver& d) {
         d.describe(kRing, 0, 0, 0, Driver::kNext, 0);
         d.offer(kRing, 0);
       }},
      {"an address outside",
       [=](Driver& d) {
         d.describe(kRing, 0, outside, 1, 0, 0);
         d.offer(kRing, 0);
       }},
      {"a buffer over the end",
       [=](Driver& d) {
         d.describe(kRing, 0, outside - 4, 5, 0, 0);
         d.offer(kRing, 0);
       }},
      {"a table over the end",
       [=](Driver& d) {
         d.describe(kRing, 0, outside - 16, 32, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"a table across the regions",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(kHalf - 16), 32, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"a table that is not aligned",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10004), 32, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"an odd table",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10000), 17, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"an empty table",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10000), 0, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"a table in a table",
       [](Driver& d) {
         d.write_entry(0x10000, d.guest(0x10000), 16, Driver::kIndirect, 0);
         d.describe(kRing, 0, d.guest(0x10000), 16, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"a table that goes on",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10000), 16, Driver::kIndirect | Driver::kNext, 1);
         d.offer(kRing, 0);
       }},
      {"a table of a thousand entries and more",
       [](Driver& d) {
         for (u16 i = 0; i < 2000; ++i)
           d.write_entry(0x10000 + 16u * i, d.guest(0x10000), 1, Driver::kNext, static_cast<u16>(i + 1));
         d.describe(kRing, 0, d.guest(0x10000), 2001 * 16, Driver::kIndirect, 0);
         d.offer(kRing, 0);
       }},
      {"to be read behind to be written",
       [](Driver& d) {
         d.describe(kRing, 0, d.guest(0x10000), 1, Driver::kNext | Driver::kWrite, 1);
         d.describe(kRing, 1, d.guest(0x10000), 1, 0, 0);
         d.offer(kRing, 0);
       }},
  };
  for (const auto& [name, lie] : lies) {
    CAPTURE(name);
    Guest guest;
    lie(guest.driver);
    CHECK_FALSE(guest.queue.pop(guest.chain));
    CHECK_FALSE(guest.queue.reason().empty());
    CHECK_FALSE(guest.queue.running());
    guest.queue.push(0, 0);
    CHECK_FALSE(guest.queue.publish());
    CHECK(guest.driver.used_index(kRing) == 0);
  }
}

TEST_CASE("rings that cannot be are not started") {
  Guest guest;
  std::string error;
  const auto start = [&](RingPlace place) {
    Virtqueue queue;
    return queue.start(guest.memory, place, 0, true, error);
  };
  const RingPlace good = guest.driver.place(kRing);
  CHECK(start(good));
  for (const u32 size : {0u, 3u, 2048u, 0x8000'0000u}) {
    RingPlace place = good;
    place.size = size;
    CHECK_FALSE(start(place));
  }
  for (u64 RingPlace::*const part : {&RingPlace::descriptors, &RingPlace::available, &RingPlace::used})
    for (const u64 address : {u64{0}, ~u64{0}, Driver::kUserBase + kBytes - 8, Driver::kUserBase + kHalf - 8,
                              Driver::kUserBase + 1}) {
      RingPlace place = good;
      place.*part = address;
      CHECK_FALSE(start(place));
    }
}

TEST_CASE("credit") {
  Credit credit;
  CHECK(credit.room() == 0);
  SUBCASE("of the guest's buffer") {
    credit.learn(100, 0);
    CHECK(credit.room() == 100);
    credit.send(60);
    CHECK(credit.room() == 40);
    credit.learn(100, 60);
    CHECK(credit.room() == 100);
    credit.learn(100, 61);  // of more than it was sent
    CHECK(credit.room() == 0);
    credit.learn(30, 0);  // smaller than what is on its way
    CHECK(credit.room() == 0);
    credit.learn(~0u, 0);
    CHECK(credit.room() == ~0u - 60);
  }
  SUBCASE("of ours, around the end of the counter") {
    u64 total = 0;
    while (total < (u64{9} << 30)) {
      REQUIRE(credit.receive(Credit::kBuffer));
      REQUIRE_FALSE(credit.receive(1));
      credit.forward(Credit::kBuffer);
      REQUIRE(credit.should_tell());
      credit.tell();
      REQUIRE_FALSE(credit.should_tell());
      total += Credit::kBuffer;
    }
    CHECK_FALSE(credit.receive(Credit::kBuffer + 1));
    CHECK_FALSE(credit.receive(~0u));
  }
}

TEST_CASE("lines of callers") {
  u32 port = 0;
  CHECK(HostDoor::parse("CONNECT 5000", port));
  CHECK(port == 5000);
  CHECK(HostDoor::parse("CONNECT 4294967295", port));
  for (const char* line : {"", "CONNECT", "CONNECT ", "CONNECT -1", "CONNECT 1 ", "CONNECT 4294967296",
                           "connect 1", "CONNECT 0x10", " CONNECT 1"})
    CHECK_FALSE(HostDoor::parse(line, port));
}

TEST_CASE("bytes are cut and copied by parts of any size") {
  std::mt19937 random(7);
  std::array<std::byte, 300> from{}, to{};
  for (std::byte& one : from) one = static_cast<std::byte>(random());
  for (int round = 0; round < 200; ++round) {
    std::vector<iovec> parts;
    for (size_t at = 0; at < from.size();) {
      const size_t here = std::min<size_t>(1 + random() % 60, from.size() - at);
      parts.push_back({from.data() + at, here});
      at += here;
    }
    const size_t skip = random() % 320, count = random() % 320;
    std::vector<iovec> rest;
    const size_t cut_bytes = cut(parts, skip, count, rest);
    CHECK(cut_bytes == std::min(count, from.size() - std::min(skip, from.size())));
    CHECK(gather(rest, to.data(), to.size()) == cut_bytes);
    CHECK(std::equal(to.begin(), to.begin() + static_cast<long>(cut_bytes),
                     from.begin() + static_cast<long>(std::min(skip, from.size()))));
  }
}

}  // namespace
}  // namespace gpupool::vsock
