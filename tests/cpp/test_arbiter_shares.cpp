// The arbiter's scheduler in made-up time: who gets how much of the GPU, among clients that behave as workers
// do.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/cpp/arbiter_world.hpp"

namespace gpupool::arbiter {
namespace {

using pages::SharePolicy;
constexpr u64 kMs = 1'000'000;
constexpr u64 kS = 1'000'000'000;

// Of 10 s after 2 s, in percent.
double achieved(World& world, u64 id) {
  world.run(2 * kS);
  const u64 before = world.used_ns(id);
  world.run(10 * kS);
  return static_cast<double>(world.used_ns(id) - before) / 1e8;
}

TEST_CASE("a share holds against a saturating neighbour, elastic or hard") {
  for (const u32 share : {1u, 5u, 10u, 25u, 50u, 75u})
    for (const SharePolicy policy : {SharePolicy::elastic, SharePolicy::hard}) {
      World world;
      world.add({1, share, policy}, Client{.kernel_ns = 100'000});
      world.add({2, 100 - share, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
      const double got = achieved(world, 1);
      CAPTURE(share);
      CAPTURE(got);
      const double allowed = std::min(2.0, share / 2.0);
      CHECK(got > share - allowed);
      CHECK(got < share + allowed);
    }
}

TEST_CASE("a hard share alone on the GPU is a cap") {
  for (const u32 share : {1u, 25u, 75u}) {
    World world;
    world.add({1, share, SharePolicy::hard}, Client{.kernel_ns = 100'000});
    CHECK(std::abs(achieved(world, 1) - share) < std::min(2.0, share / 2.0));
  }
}

TEST_CASE("an elastic share alone, or beside an idle neighbour, has it all") {
  World world;
  world.add({1, 10, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  world.add({2, 90, SharePolicy::elastic}, Client{.kernel_ns = 0});
  CHECK(achieved(world, 1) > 99);
}

TEST_CASE("kernels longer than a lease are charged") {
  for (const u32 share : {5u, 25u, 75u}) {
    World world;
    world.add({1, share, SharePolicy::hard}, Client{.kernel_ns = 22 * kMs});
    world.add({2, 100 - share, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
    CHECK(std::abs(achieved(world, 1) - share) < 2);
  }
}

TEST_CASE("three tenants at 50, 30 and 20") {
  World world;
  world.add({1, 50, SharePolicy::elastic}, Client{.kernel_ns = 50'000});
  world.add({2, 30, SharePolicy::elastic}, Client{.kernel_ns = 3 * kMs});
  world.add({3, 20, SharePolicy::hard}, Client{.kernel_ns = 500'000});
  world.run(2 * kS);
  const u64 before[] = {world.used_ns(1), world.used_ns(2), world.used_ns(3)};
  world.run(10 * kS);
  CHECK(std::abs(static_cast<double>(world.used_ns(1) - before[0]) / 1e8 - 50) < 2);
  CHECK(std::abs(static_cast<double>(world.used_ns(2) - before[1]) / 1e8 - 30) < 2);
  CHECK(std::abs(static_cast<double>(world.used_ns(3) - before[2]) / 1e8 - 20) < 2);
}

TEST_CASE("little is lost to changing: two tenants, and eight") {
  for (const u32 count : {2u, 8u}) {
    World world;
    for (u32 i = 1; i <= count; ++i)
      world.add({i, 100 / count, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
    world.run(2 * kS);
    u64 before = 0;
    for (u32 i = 1; i <= count; ++i) before += world.used_ns(i);
    world.run(10 * kS);
    u64 after = 0;
    for (u32 i = 1; i <= count; ++i) after += world.used_ns(i);
    CAPTURE(count);
    CHECK(static_cast<double>(after - before) / 1e8 > 97);
  }
}

TEST_CASE("those without a share divide what is left, and get a turn when nothing is") {
  World world;
  world.add({1, 60, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  world.add({2, 0, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  world.add({3, 0, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  world.run(2 * kS);
  const u64 before[] = {world.used_ns(1), world.used_ns(2), world.used_ns(3)};
  world.run(10 * kS);
  CHECK(std::abs(static_cast<double>(world.used_ns(1) - before[0]) / 1e8 - 60) < 2);
  CHECK(std::abs(static_cast<double>(world.used_ns(2) - before[1]) / 1e8 - 20) < 2);
  CHECK(std::abs(static_cast<double>(world.used_ns(3) - before[2]) / 1e8 - 20) < 2);

  World full;
  full.add({1, 100, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  full.add({2, 0, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  full.run(2 * kS);
  for (int second = 0; second < 5; ++second) {
    const u64 used = full.used_ns(2);
    full.run(1200 * kMs);
    CHECK(full.used_ns(2) > used);
  }
  CHECK(achieved(full, 1) > 98);
}

TEST_CASE("a vGPU that comes and goes has its share when it wants it, soon") {
  World world;
  // 2 ms of work every 10 ms.
  world.add({1, 50, SharePolicy::elastic}, Client{.kernel_ns = 1 * kMs, .burst = 2, .pause_ns = 8 * kMs});
  world.add({2, 50, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  CHECK(achieved(world, 1) > 15);
  CHECK(world.longest_wait_ns(1) < 6 * kMs);
  CHECK(achieved(world, 2) > 70);
}

TEST_CASE("a resized share holds at once") {
  World world;
  world.add({1, 25, SharePolicy::hard}, Client{.kernel_ns = 100'000});
  world.add({2, 75, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  CHECK(std::abs(achieved(world, 1) - 25) < 2);
  world.resize({{1, 70, SharePolicy::hard}, {2, 30, SharePolicy::elastic}});
  world.run(100 * kMs);
  const u64 before = world.used_ns(1);
  world.run(1 * kS);
  CHECK(std::abs(static_cast<double>(world.used_ns(1) - before) / 1e7 - 70) < 4);
}

TEST_CASE("an endless kernel does not starve the neighbour") {
  World world;
  world.add({1, 50, SharePolicy::elastic}, Client{.kernel_ns = 3600 * kS});
  world.add({2, 50, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  CHECK(achieved(world, 2) > 48);
}

TEST_CASE("whoever waits for what it has yet to submit gets a turn again and again") {
  for (const bool beside : {false, true}) {
    Scheduler scheduler;
    std::vector<Tenant> tenants = {{1, 10, SharePolicy::hard}};
    if (beside) tenants.push_back({2, 90, SharePolicy::elastic});
    scheduler.set_tenants(tenants, kS);
    // The first is never drained; the second does as it should.
    u64 turns = 0, last = 0;
    for (u64 now = kS; now < 11 * kS; now += kMs / 2) {
      for (int i = 0; i < 3; ++i) {
        std::vector<Signals> heard = {{true, true, scheduler.lease(0).number == last}};
        if (beside) heard.push_back({!scheduler.lease(1).held, scheduler.lease(1).held, false});
        scheduler.step(now, heard);
      }
      if (scheduler.lease(0).held && scheduler.lease(0).number != last) ++turns;
      if (scheduler.lease(0).held) last = scheduler.lease(0).number;
    }
    CHECK(turns >= 8);
  }
}

TEST_CASE("one who says that he is never drained pays for being waited for") {
  World world;
  world.add({1, 5, SharePolicy::elastic}, Client{.kernel_ns = 100'000, .late_drain_ns = 99 * kMs});
  world.add({2, 95, SharePolicy::elastic}, Client{.kernel_ns = 100'000});
  CHECK(achieved(world, 2) > 92);
}

TEST_CASE("nobody is asked to wait where nobody has to") {
  CHECK(!must_arbitrate({}));
  CHECK(!must_arbitrate({{1, 0, SharePolicy::elastic}, {2, 0, SharePolicy::elastic}}));
  CHECK(!must_arbitrate({{1, 50, SharePolicy::elastic}}));
  CHECK(!must_arbitrate({{1, 100, SharePolicy::hard}}));
  CHECK(must_arbitrate({{1, 99, SharePolicy::hard}}));
  CHECK(must_arbitrate({{1, 50, SharePolicy::elastic}, {2, 0, SharePolicy::elastic}}));
}

}  // namespace
}  // namespace gpupool::arbiter
