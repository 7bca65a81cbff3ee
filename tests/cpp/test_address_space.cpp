#include <doctest/doctest.h>
#include <sys/mman.h>

#include <map>
#include <random>

#include "guest/runtime/manual/address_space.hpp"

namespace gpupool::guest {
namespace {

Allocation device_memory(u64 address, u64 size, MemoryKind kind = MemoryKind::device) {
  Allocation allocation;
  allocation.address = address;
  allocation.size = size;
  allocation.kind = kind;
  return allocation;
}

}  // namespace

TEST_CASE("the address table agrees with a plain list of ranges") {
  std::mt19937_64 random(20261123);
  AddressSpace space;
  std::map<u64, u64> model;
  const auto overlaps = [&](u64 address, u64 size) {
    for (const auto& [begin, bytes] : model)
      if (address < begin + bytes && begin < address + size) return true;
    return false;
  };
  for (int turn = 0; turn < 20000; ++turn) {
    const u64 address = 0x1000 + random() % 4000;
    const u64 size = 1 + random() % 60;
    switch (random() % 3) {
      case 0: {
        const bool fits = !overlaps(address, size);
        REQUIRE(space.insert(device_memory(address, size)) == fits);
        if (fits) model[address] = size;
        break;
      }
      case 1: {
        const bool there = model.erase(address) == 1;
        REQUIRE(space.take(address, {MemoryKind::device}).has_value() == there);
        break;
      }
      default: {
        u64 covered = 0;  // bytes from `address` on without a gap
        for (u64 at = address; covered < size; ++at, ++covered)
          if (!overlaps(at, 1)) break;
        const auto cover = space.cover(address, size);
        REQUIRE((cover == AddressSpace::Cover::unknown) == (covered == 0));
        REQUIRE((cover == AddressSpace::Cover::whole) == (covered == size));
        const auto found = space.find(address);
        REQUIRE(found.has_value() == (covered != 0));
        if (found) REQUIRE((found->address <= address && address < found->end()));
      }
    }
  }
}

TEST_CASE("every allocation has an id of its own, also at an address used before") {
  AddressSpace space;
  REQUIRE(space.insert(device_memory(4096, 16)));
  const u64 first = space.find(4100)->id;
  REQUIRE(space.take(4096, {MemoryKind::device}));
  REQUIRE(space.insert(device_memory(4096, 16)));
  CHECK(space.find(4100)->id != first);
}

TEST_CASE("only the right kind of memory is taken, and never by an address inside") {
  AddressSpace space;
  REQUIRE(space.insert(device_memory(4096, 4096, MemoryKind::pinned)));
  CHECK_FALSE(space.take(4096, {MemoryKind::device, MemoryKind::stream_ordered}));
  CHECK_FALSE(space.take(5000, {MemoryKind::pinned}));
  CHECK(space.take(4096, {MemoryKind::pinned}));
}

TEST_CASE("memory of graphs gives way to whatever the driver puts at its address") {
  AddressSpace space;
  REQUIRE(space.insert(device_memory(0x1000, 0x100, MemoryKind::graph)));
  REQUIRE(space.insert(device_memory(0x1100, 0x100, MemoryKind::graph)));
  REQUIRE(space.insert(device_memory(0x2000, 0x100)));
  CHECK(space.insert(device_memory(0x1080, 0x10)));  // inside the first
  CHECK(space.find(0x1000) == std::nullopt);
  CHECK(space.find(0x1100)->kind == MemoryKind::graph);
  CHECK_FALSE(space.insert(device_memory(0x1088, 0x10)));
  // Ordinary memory that a graph may free does the same from then on.
  CHECK_FALSE(space.insert(device_memory(0x2000, 0x10)));
  space.lend(0x2000);
  CHECK(space.take(0x2000, {MemoryKind::device}) == std::nullopt);
  CHECK(space.insert(device_memory(0x20f0, 0x20)));
  CHECK(space.find(0x2000) == std::nullopt);
}

TEST_CASE("empty and wrapping ranges are refused") {
  AddressSpace space;
  CHECK_FALSE(space.insert(device_memory(4096, 0)));
  CHECK_FALSE(space.insert(device_memory(~0ull - 10, 100)));
}

TEST_CASE("unmapping takes whole mappings only") {
  AddressSpace space;
  space.add_reservation({0x10000, 0x10000});
  REQUIRE(space.insert(device_memory(0x10000, 0x1000, MemoryKind::mapped)));
  REQUIRE(space.insert(device_memory(0x11000, 0x1000, MemoryKind::mapped)));
  CHECK_FALSE(space.take_mapped(0x10000, 0x1800));
  CHECK_FALSE(space.take_mapped(0x10800, 0x1800));
  CHECK_FALSE(space.take_reservation(0x10000, 0x10000));
  CHECK(space.take_mapped(0x10000, 0x2000));
  CHECK_FALSE(space.find(0x11000));
  CHECK_FALSE(space.take_reservation(0x10000, 0x8000));
  CHECK(space.take_reservation(0x10000, 0x10000));
}

TEST_CASE("memory that was only registered is no device memory") {
  AddressSpace space;
  REQUIRE(space.insert(device_memory(4096, 4096, MemoryKind::registered)));
  CHECK(space.cover(4096, 10) == AddressSpace::Cover::unknown);
  CHECK_FALSE(space.is_device(4096));
}

TEST_CASE("a kept range cannot be mapped by the program, and an occupied one is not kept") {
  AddressSpace space;
  constexpr u64 kSize = 8u << 20;
  void* hole = mmap(nullptr, kSize * 3, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(hole != MAP_FAILED);
  const u64 begin = (reinterpret_cast<u64>(hole) + kSize) / kAddressUnit * kAddressUnit;
  CHECK_FALSE(space.keep_free(begin, 4096));
  munmap(hole, kSize * 3);
  CHECK(space.keep_free(begin + 100, kSize - 200));
  CHECK(space.keep_free(begin, kSize));  // again: what is ours is no obstacle
  CHECK(space.is_device(begin + kSize - 1));
  void* taken = mmap(reinterpret_cast<void*>(begin + 4096), 4096, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  CHECK(taken == MAP_FAILED);
  munmap(reinterpret_cast<void*>(begin), kSize);
}

}  // namespace gpupool::guest
