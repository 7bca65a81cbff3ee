// What was advised, page by page.
#include <doctest/doctest.h>

#include <vector>

#include "guest/runtime/manual/advice.hpp"

using namespace gpupool;
using namespace gpupool::guest;

namespace {

std::vector<u64> seen(const AdviceMap& map, u64 begin, u64 end) {
  std::vector<u64> runs;
  map.each(begin, end, [&](const Advice& advice) { runs.push_back(advice.accessed_by); });
  return runs;
}

void set(AdviceMap& map, u64 begin, u64 end, u64 value) {
  map.change(begin, end, [value](Advice& advice) { advice.accessed_by |= value; });
}

constexpr u64 kPage = 4096;

}  // namespace

TEST_CASE("advice: runs are split where advice differs") {
  AdviceMap map;
  CHECK(seen(map, 0x10000, 0x20000) == std::vector<u64>{0});
  set(map, 0x10000, 0x20000, 1);
  CHECK(seen(map, 0x10000, 0x20000) == std::vector<u64>{1});
  set(map, 0x14000, 0x15000, 2);
  CHECK(seen(map, 0x10000, 0x20000) == std::vector<u64>{1, 3, 1});
  CHECK(seen(map, 0x14000, 0x15000) == std::vector<u64>{3});
  CHECK(seen(map, 0x13000, 0x14000) == std::vector<u64>{1});
  CHECK(seen(map, 0x15000, 0x15001) == std::vector<u64>{1});
}

TEST_CASE("advice: gaps count as pages without advice") {
  AdviceMap map;
  set(map, 0x12000, 0x13000, 1);
  set(map, 0x16000, 0x17000, 2);
  CHECK(seen(map, 0x10000, 0x20000) == std::vector<u64>{0, 1, 0, 2, 0});
  CHECK(seen(map, 0x12000, 0x17000) == std::vector<u64>{1, 0, 2});
  set(map, 0x10000, 0x20000, 4);
  CHECK(seen(map, 0x10000, 0x20000) == std::vector<u64>{4, 5, 4, 6, 4});
}

TEST_CASE("advice: ranges grow to whole pages, and what is freed is forgotten") {
  AdviceMap map;
  set(map, 0x10000 + 5, 0x10000 + 6, 1);
  CHECK(seen(map, 0x10000, 0x10000 + kPage) == std::vector<u64>{1});
  set(map, 0x10000, 0x20000, 2);
  map.forget(0x11000, 0x18000 - 1);
  CHECK(seen(map, 0x10000, 0x20000) == std::vector<u64>{3, 0, 2});
}
