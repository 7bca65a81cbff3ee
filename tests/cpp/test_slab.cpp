#include <doctest/doctest.h>

#include <set>
#include <vector>

#include "guest/runtime/slab.hpp"

namespace gpupool::guest {
namespace {

struct Thing {
  int value = 7;
  ~Thing() { value = -1; }
};

// An address that the compiler cannot know, as a program's handles are.
void* address(u64 value) {
  volatile u64 hidden = value;
  return reinterpret_cast<void*>(hidden);
}

}  // namespace

TEST_CASE("a slab knows its live objects and nothing else") {
  Slab<Thing> slab;
  CHECK(slab.find(address(0)) == nullptr);
  Thing* thing = slab.create();
  REQUIRE(thing != nullptr);
  CHECK(thing->value == 7);
  CHECK(slab.find(thing) == thing);
  CHECK(slab.find(reinterpret_cast<u8*>(thing) + 1) == nullptr);
  CHECK(slab.find(reinterpret_cast<u8*>(thing) - sizeof(Thing)) == nullptr);
  CHECK(slab.find(address(0x1000)) == nullptr);
  CHECK(slab.find(address(~u64{0})) == nullptr);
  slab.destroy(thing);
  CHECK(slab.find(thing) == nullptr);
}

TEST_CASE("a destroyed object's place rests before it is used again") {
  Slab<Thing> slab;
  Thing* first = slab.create();
  slab.destroy(first);
  for (int i = 0; i < 32; ++i) CHECK(slab.create() != first);
}

TEST_CASE("places are used again, so that making and destroying for ever takes no memory") {
  Slab<Thing> slab;
  std::set<Thing*> places;
  for (int i = 0; i < 10'000; ++i) {
    Thing* thing = slab.create();
    REQUIRE(thing != nullptr);
    REQUIRE(thing->value == 7);
    places.insert(thing);
    slab.destroy(thing);
  }
  CHECK(places.size() < 200);
}

}  // namespace gpupool::guest
