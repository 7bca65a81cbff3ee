#include <doctest/doctest.h>

#include "guest/runtime/heap.hpp"

namespace gpupool::guest {

TEST_CASE("ranges are taken first fit, at a multiple of what is asked for") {
  RangeSet set;
  set.add(0x1000, 0x10'0000);
  CHECK(set.take(0x1000) == 0x1000);
  CHECK(set.take(0x2000, 0x1'0000) == 0x1'0000);
  // What was skipped is still there.
  CHECK(set.take(0xe000) == 0x2000);
  CHECK(set.take(0x1000) == 0x1'2000);
  CHECK(set.take(0x10'0000, 0x10'0000) == 0);
  CHECK(set.take(0x1000, 0x20'0000) == 0);
}

TEST_CASE("a range that only fits where it begins is not taken elsewhere") {
  RangeSet set;
  set.add(0x1000, 0x1000);
  set.add(0x3000, 0x2000);
  CHECK(set.take(0x2000, 0x2000) == 0);
  CHECK(set.take(0x1000, 0x2000) == 0x4000);
  set.add(0x4000, 0x1000);
  CHECK(set.take(0x2000) == 0x3000);
  CHECK(set.covers(0x1000, 0x1000));
}

}  // namespace gpupool::guest
