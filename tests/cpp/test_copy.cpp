#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "guest/runtime/manual/copy_parts.hpp"
#include "guest/runtime/manual/copy_threads.hpp"

namespace gpupool::guest {

TEST_CASE("parts tile a box in the order of its bytes and fit their pieces") {
  std::mt19937_64 random(7);
  const auto upto = [&](u64 most) { return 1 + random() % most; };
  for (int turn = 0; turn < 3000; ++turn) {
    const u64 width = upto(turn % 2 == 0 ? 300 : 12), height = upto(12), depth = upto(6), limit = upto(200);
    Cutter cutter(width, height, depth, limit);
    Part part;
    std::vector<int> covered(width * height * depth);
    u64 last = 0;
    while (cutter.next(part)) {
      REQUIRE(part.bytes() > 0);
      REQUIRE(part.bytes() <= limit);
      const u64 first = (part.z * height + part.y) * width + part.x;
      REQUIRE(first == last);
      last += part.bytes();
      for (u64 z = 0; z < part.depth; ++z)
        for (u64 y = 0; y < part.height; ++y)
          for (u64 x = 0; x < part.width; ++x)
            ++covered.at(((part.z + z) * height + part.y + y) * width + part.x + x);
    }
    for (const int times : covered) REQUIRE(times == 1);
  }
}

TEST_CASE("a streaming copy copies every byte and none beside") {
  std::mt19937_64 random(11);
  std::vector<u8> source(1 << 16), target(1 << 16);
  for (u8& byte : source) byte = static_cast<u8>(random());
  for (int turn = 0; turn < 400; ++turn) {
    const u64 from = random() % 200, to = 64 + random() % 200;
    const u64 bytes = random() % (turn % 4 == 0 ? 5000 : 60000);
    std::fill(target.begin(), target.end(), u8{0xa5});
    copy_streaming(target.data() + to, source.data() + from, bytes);
    REQUIRE(std::equal(source.begin() + from, source.begin() + from + bytes, target.begin() + to));
    REQUIRE(target[to - 1] == 0xa5);
    REQUIRE(target[to + bytes] == 0xa5);
  }
}

TEST_CASE("every share of a copy is done once, also when several threads copy") {
  std::vector<std::thread> callers;
  std::atomic<int> bad{0};
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int turn = 0; turn < 200; ++turn) {
        std::vector<std::atomic<int>> done(64);
        run_copy(1 + turn % 4, [&](u32 index, u32 count) {
          for (u64 i = index; i < done.size(); i += count) done[i].fetch_add(1);
        });
        for (const auto& times : done)
          if (times.load() != 1) bad.fetch_add(1);
      }
    });
  for (std::thread& each : callers) each.join();
  CHECK(bad.load() == 0);
}

}  // namespace gpupool::guest
