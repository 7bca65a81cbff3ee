#include <doctest/doctest.h>

#include <set>

#include "guest/runtime/objects.hpp"
#include "wire/cpp/layout.hpp"

namespace gpupool::guest {

using wire::Handle;
using wire::HandleKind;

TEST_CASE("a handle is its kind, generation and index") {
  constexpr Handle handle = Handle::make(HandleKind::event, 0x12'3456, 0x89ab'cdef);
  CHECK(handle.kind() == HandleKind::event);
  CHECK(handle.generation() == 0x12'3456);
  CHECK(handle.index() == 0x89ab'cdef);
  CHECK(Handle::make(HandleKind::event, 0x100'0001, 5) == Handle::make(HandleKind::event, 1, 5));
  CHECK_FALSE(static_cast<bool>(Handle{}));
}

TEST_CASE("live handles differ, and index 0 is never given") {
  HandleAllocator allocator(HandleKind::module, 1000);
  std::set<u32> indices;
  for (int i = 0; i < 1000; ++i) {
    const Handle handle = allocator.take();
    REQUIRE(handle);
    CHECK(handle.kind() == HandleKind::module);
    CHECK(handle.index() >= 1);
    CHECK(handle.index() <= 1000);
    indices.insert(handle.index());
  }
  CHECK(indices.size() == 1000);
  CHECK_FALSE(static_cast<bool>(allocator.take()));
}

TEST_CASE("an index that is used again has another generation") {
  HandleAllocator allocator(HandleKind::module, 1);
  const Handle first = allocator.take();
  allocator.give_back(first);
  const Handle second = allocator.take();
  CHECK(second.index() == first.index());
  CHECK(second.generation() != first.generation());
  CHECK(second.generation() != 0);
}

TEST_CASE("making and destroying for ever uses few indices") {
  HandleAllocator allocator(HandleKind::event, 1u << 20);
  u32 highest = 0;
  for (int i = 0; i < 10'000; ++i) {
    const Handle handle = allocator.take();
    highest = handle.index() > highest ? handle.index() : highest;
    allocator.give_back(handle);
  }
  CHECK(highest < 1000);
}

TEST_CASE("a stream's index is that of a completion word") {
  u32 highest = 0;
  std::vector<Handle> taken;
  while (const Handle handle = handles(HandleKind::stream).take()) {
    highest = handle.index() > highest ? handle.index() : highest;
    taken.push_back(handle);
  }
  CHECK(highest == wire::kWords - 1);
  for (const Handle handle : taken) handles(HandleKind::stream).give_back(handle);
}

}  // namespace gpupool::guest
