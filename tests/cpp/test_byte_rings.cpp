// The rings of bytes in a window: order, wrapping, who is told what, and counters that cannot be.
#include <doctest/doctest.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "wire/cpp/byte_rings.hpp"

namespace gpupool::test {
namespace {

using wire::ByteRings;
using wire::kByteRingsPage;
using wire::RingReader;
using wire::RingWriter;

// Room for some bytes each way, so that they wrap often.
struct Slot {
  explicit Slot(u64 each)
      : size(kByteRingsPage + 2 * each),
        bytes(static_cast<u8*>(std::calloc(1, size + kByteRingsPage)), std::free),
        start(bytes.get() + kByteRingsPage - reinterpret_cast<u64>(bytes.get()) % kByteRingsPage) {}
  ByteRings rings() { return ByteRings(start, size); }
  u64 size;
  std::unique_ptr<u8, void (*)(void*)> bytes;
  u8* start;
};

u64 write(RingWriter& to, const u8* data, u64 size) {
  const std::span<u8> room = to.room();
  const u64 count = std::min<u64>(size, room.size());
  std::copy_n(data, count, room.data());
  to.publish(count);
  return count;
}

u64 read(RingReader& from, std::vector<u8>& into) {
  const std::span<u8> there = from.there();
  into.insert(into.end(), there.begin(), there.end());
  from.consume(there.size());
  return there.size();
}

}  // namespace

TEST_CASE("a ring gives back what was put in, in order, also by another thread") {
  Slot slot(192);
  std::vector<u8> sent(1 << 20);
  std::mt19937 random(7);
  for (u8& byte : sent) byte = static_cast<u8>(random());
  std::vector<u8> got;
  std::thread writer([&] {
    RingWriter up = slot.rings().to_host();
    for (u64 at = 0; at < sent.size();)
      at += write(up, &sent[at], std::min<u64>(1 + at % 77, sent.size() - at));
  });
  RingReader up = slot.rings().from_guest();
  while (got.size() < sent.size() && !up.broken()) read(up, got);
  writer.join();
  CHECK(got == sent);
}

TEST_CASE("the two directions have nothing in common") {
  Slot slot(128);
  RingWriter up = slot.rings().to_host(), down = slot.rings().to_guest();
  const std::vector<u8> ones(128, 1), twos(128, 2);
  CHECK(write(up, ones.data(), 200) == 128);
  CHECK(write(down, twos.data(), 200) == 128);
  CHECK(up.room().empty());
  std::vector<u8> got;
  RingReader from_host = slot.rings().from_host();
  CHECK(read(from_host, got) == 128);
  CHECK(got == twos);
  CHECK(up.room().empty());
  CHECK(down.room().size() == 128);
}

TEST_CASE("who sleeps is told, and nobody else") {
  Slot slot(128);
  RingWriter writer = slot.rings().to_host();
  RingReader reader = slot.rings().from_guest();
  CHECK_FALSE(writer.publish(64));
  reader.sleep(true);
  CHECK(writer.publish(64));
  reader.sleep(false);
  CHECK(writer.room().empty());
  CHECK_FALSE(reader.consume(1));
  writer.sleep(true);
  CHECK(reader.consume(1));
  writer.sleep(false);
  CHECK(writer.room().size() == 2);
}

TEST_CASE("a counter that cannot be gives nothing to read or write, for good") {
  for (const u64 lie : {u64{129}, u64{1} << 40, u64{1} << 63, ~u64{0}}) {
    Slot slot(128);
    RingReader reader = slot.rings().from_guest();
    slot.rings().up->written.store(lie);
    CHECK(reader.there().empty());
    CHECK(reader.broken());
    slot.rings().up->written.store(1);
    CHECK(reader.there().empty());
  }
  for (const u64 lie : {u64{65}, u64{1} << 40, u64{1} << 63}) {
    Slot slot(128);
    RingWriter writer = slot.rings().to_host();
    writer.publish(64);
    slot.rings().up->read.store(lie);  // more than was written
    CHECK(writer.room().empty());
    CHECK(writer.broken());
  }
}

}  // namespace gpupool::test
