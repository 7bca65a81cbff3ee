// Sessions of one vGPU: who has its lease, in made-up time.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/cpp/arbiter_world.hpp"

namespace gpupool::arbiter {
namespace {

using pages::SharePolicy;
constexpr u64 kMs = 1'000'000;
constexpr u64 kS = 1'000'000'000;

constexpr Client kSmall{.kernel_ns = 100'000};

double percent(u64 ns, u64 of_ns) {
  return static_cast<double>(ns) * 100 / static_cast<double>(of_ns);
}

TEST_CASE("saturating sessions of one vGPU have its share, one at a time and equally") {
  for (const u32 share : {5u, 25u, 50u, 75u})
    for (const size_t sessions : {2u, 5u}) {
      World world;
      world.add({1, share, SharePolicy::hard}, kSmall);
      for (size_t i = 1; i < sessions; ++i) world.join(1, kSmall);
      world.add({2, 100 - share, SharePolicy::elastic}, kSmall);
      world.run(2 * kS);
      const u64 before = world.used_ns(1);
      std::vector<u64> each;
      for (size_t i = 0; i < sessions; ++i) each.push_back(world.used_by_ns(i));
      world.run(10 * kS);
      CAPTURE(share);
      CAPTURE(sessions);
      CHECK(std::abs(percent(world.used_ns(1) - before, 10 * kS) - share) < 2);
      for (size_t i = 0; i < sessions; ++i)
        CHECK(std::abs(percent(world.used_by_ns(i) - each[i], world.used_ns(1) - before) * sessions - 100) <
              20);
      CHECK(percent(world.together_ns(), 12 * kS) < 0.1);
    }
}

TEST_CASE("sessions of a vGPU that has the whole GPU take turns there, too") {
  World world;
  world.add({1, 50, SharePolicy::elastic}, Client{.kernel_ns = 100'000, .burst = 1});
  world.join(1, kSmall);
  world.add({2, 50, SharePolicy::elastic}, Client{});
  world.run(10 * kS);
  CHECK(percent(world.used_ns(1), 10 * kS) > 98);
  CHECK(std::abs(percent(world.used_by_ns(0), 10 * kS) - 50) < 3);
  CHECK(world.longest_wait_by_ns(0) < Turns::kTurnNs + 4 * kMs);
  CHECK(percent(world.together_ns(), 10 * kS) < 0.1);
}

TEST_CASE("what one session does not use goes to the other at once") {
  World world;
  // 3 ms of work, then nothing for 4 ms.
  world.add({1, 50, SharePolicy::hard}, Client{.kernel_ns = 1 * kMs, .burst = 3, .pause_ns = 4 * kMs});
  world.join(1, kSmall);
  world.add({2, 50, SharePolicy::elastic}, kSmall);
  world.run(2 * kS);
  const u64 before = world.used_ns(1);
  world.run(10 * kS);
  CHECK(std::abs(percent(world.used_ns(1) - before, 10 * kS) - 50) < 3);
}

TEST_CASE("a session that has just come does not wait for another's whole turn") {
  World world;
  world.add({1, 50, SharePolicy::elastic}, kSmall);
  // 1 ms of work every 10 ms or so.
  const size_t light = world.join(1, Client{.kernel_ns = 1 * kMs, .burst = 1, .pause_ns = 9 * kMs});
  world.add({2, 50, SharePolicy::elastic}, Client{});
  world.run(10 * kS);
  CHECK(world.longest_wait_by_ns(light) < 5 * kMs);
  CHECK(percent(world.used_by_ns(light), 10 * kS) > 7);
  CHECK(percent(world.used_by_ns(0), 10 * kS) > 80);
}

TEST_CASE("an endless kernel of one session does not stop the vGPU's other one") {
  World world;
  world.add({1, 50, SharePolicy::elastic}, Client{.kernel_ns = 3600 * kS});
  const size_t other = world.join(1, kSmall);
  world.add({2, 50, SharePolicy::elastic}, Client{});
  world.run(10 * kS);
  CHECK(percent(world.used_by_ns(other), 10 * kS) > 45);
}

// Two sessions whose work waits for the other's in turn: neither drains before the other has been let in.
TEST_CASE("sessions that wait for each other on the GPU go on") {
  Turns turns;
  const std::vector<Tenant> tenants = {{1, 50, SharePolicy::elastic}, {2, 50, SharePolicy::elastic}};
  turns.set_sessions(tenants, {{1, 0}, {2, 0}, {3, 1}}, kS);
  size_t waits = 0;  // its work stands still
  u64 passed = 0;
  u64 now = kS;
  bool let_in = false;
  for (; now < 11 * kS; now += kMs / 4) {
    for (int i = 0; i < 4; ++i) {
      std::vector<Signals> heard(3);
      heard[waits] = Signals{false, true, false};
      heard[1 - waits] = Signals{!let_in, let_in, false};
      turns.step(now, heard);
      let_in = let_in || turns.lease(1 - waits).held;
    }
    if (!let_in) continue;
    // It has written what the other waits for, and waits itself.
    waits = 1 - waits;
    let_in = false;
    ++passed;
  }
  CHECK(passed > 3000);  // each after a short turn
}

TEST_CASE("a session that ends with its turn leaves it to the next one") {
  World world;
  world.add({1, 25, SharePolicy::hard}, kSmall);
  world.join(1, kSmall);
  const size_t last = world.join(1, kSmall);
  world.run(1 * kS + 3 * kMs);
  world.leave(last);
  world.leave(0);
  const u64 before = world.used_ns(1);
  world.run(2 * kS);
  CHECK(std::abs(percent(world.used_ns(1) - before, 2 * kS) - 25) < 2);
}

}  // namespace
}  // namespace gpupool::arbiter
