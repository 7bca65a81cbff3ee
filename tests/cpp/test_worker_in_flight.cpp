// What is in flight while a GPU is shared by leases: batches, and when they are done.
#include <doctest/doctest.h>

#include "tests/cpp/marked_gpu.hpp"

namespace gpupool::worker {
namespace {

constexpr u64 kUs = 1000;
constexpr u64 kMs = 1'000'000;

// Two batches of one, which took that long each: then it is known what one costs.
void teach(MarkedGpu& gpu, InFlight& flight, wire::Handle stream, u64 driver, u64& now, u64 cost_ns) {
  for (int i = 0; i < 12; ++i) {
    flight.add(stream, now);
    flight.close();
    now += cost_ns;
    gpu.done(driver);
    flight.look(now);
  }
  REQUIRE(flight.is_empty());
}

TEST_CASE("a batch is done when each stream that it used has come to its mark") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  const auto two = gpu.stream(0x20);
  CHECK(flight.is_empty());
  flight.add(one, 1 * kMs);
  flight.add(two, 1 * kMs);
  flight.add(one, 1 * kMs);
  CHECK(flight.is_open());
  CHECK(!flight.is_empty());
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());  // an open batch is in flight
  flight.close();
  CHECK(!flight.is_open());
  CHECK(gpu.marks == 2);
  gpu.done(0x10);
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());
  gpu.done(0x20);
  flight.look(2 * kMs);
  CHECK(flight.is_empty());
  flight.close();  // nothing is open: nothing to mark
  CHECK(gpu.marks == 2);
}

TEST_CASE("batches are done in their order") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  const auto two = gpu.stream(0x20);
  flight.add(one, 1 * kMs);
  flight.close();
  flight.add(two, 1 * kMs);
  flight.close();
  gpu.done(0x20);
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());
  gpu.done(0x10);
  flight.look(3 * kMs);
  CHECK(flight.is_empty());
}

TEST_CASE("what is submitted to no stream of ours is done at once; so is what went with its context") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  flight.add(wire::Handle{}, 1 * kMs);
  flight.close();
  flight.look(1 * kMs);
  CHECK(flight.is_empty());
  flight.add(gpu.stream(0x20, 2), 1 * kMs);
  flight.close();
  CHECK(gpu.marks == 1);
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());
  gpu.worker.contexts.take(MarkedGpu::context(2));
  flight.look(2 * kMs);
  CHECK(flight.is_empty());
}

TEST_CASE("a client's capture gets no mark of ours, and what cannot be marked is in flight until it can be") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto captured = gpu.stream(0x10);
  const auto legacy = gpu.stream(0);
  const auto other = gpu.stream(0x20);
  gpu.worker.streams.find(captured)->capturing = true;
  for (const auto stream : {captured, legacy, other}) flight.add(stream, 1 * kMs);
  flight.close();
  CHECK(gpu.marks == 1);  // not even on the legacy stream, which the capture forbids to use
  gpu.done(0x20);
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());
  gpu.worker.streams.find(captured)->capturing = false;
  flight.look(3 * kMs);
  CHECK(gpu.marks == 3);
  gpu.done(0x10);
  flight.look(3 * kMs);
  CHECK(!flight.is_empty());
  gpu.done(u64{0});
  flight.look(3 * kMs);
  CHECK(flight.is_empty());
}

TEST_CASE("the legacy stream is marked beside a capture that it does not wait for") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto captured = gpu.stream(0x10);
  gpu.non_blocking = reinterpret_cast<CUstream>(u64{0x10});
  gpu.worker.streams.find(captured)->capturing = true;
  flight.add(gpu.stream(0), 1 * kMs);
  flight.close();
  CHECK(gpu.marks == 1);
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());
  gpu.done(u64{0});
  flight.look(2 * kMs);
  CHECK(flight.is_empty());
}

TEST_CASE("a stream that is destroyed after its mark is waited for all the same") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  flight.add(one, 1 * kMs);
  flight.close();
  gpu.worker.streams.take(one);
  flight.look(2 * kMs);
  CHECK(!flight.is_empty());
  gpu.done(0x10);
  flight.look(2 * kMs);
  CHECK(flight.is_empty());
}

TEST_CASE("a driver that takes no mark any more leaves nothing in flight") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  flight.add(one, 1 * kMs);
  flight.close();
  gpu.refuses = true;
  flight.add(one, 2 * kMs);
  flight.close();
  CHECK(flight.is_empty());
}

TEST_CASE("batches are half a millisecond, and a millisecond is enough in flight") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  u64 now = 1000 * kMs;
  // Nothing is known of the first: it is a batch of its own, and a second one may follow.
  flight.add(one, now);
  CHECK(flight.wants_mark(now));
  flight.close();
  CHECK(!flight.is_full());
  flight.add(one, now);
  flight.close();
  CHECK(flight.is_full());
  now += 200 * kUs;
  gpu.done(0x10);
  flight.look(now);
  CHECK(!flight.is_full());
  teach(gpu, flight, one, 0x10, now, 50 * kUs);
  CHECK(flight.cost_ns() >= 45 * kUs);
  CHECK(flight.cost_ns() < 65 * kUs);
  u32 batches = 0;
  u32 submissions = 0;
  while (!flight.is_full()) {
    flight.add(one, now);
    ++submissions;
    if (flight.wants_mark(now)) {
      flight.close();
      ++batches;
    }
    REQUIRE(submissions < 100);
  }
  CHECK(submissions >= 14);
  CHECK(submissions <= 24);
  CHECK(batches >= 2);
  CHECK(flight.expected_ns() > 800 * kUs);
  CHECK(flight.expected_ns() < 1500 * kUs);
  // What trickles in is marked in time, too.
  flight.close();
  gpu.done(0x10);
  flight.look(now += 1 * kMs);
  flight.add(one, now);
  CHECK(!flight.wants_mark(now + 100 * kUs));
  CHECK(flight.wants_mark(now + 500 * kUs));
}

TEST_CASE("what costs more from now on is noticed at once, what costs less by and by") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  u64 now = 1000 * kMs;
  teach(gpu, flight, one, 0x10, now, 20 * kUs);
  flight.add(one, now);
  flight.close();
  gpu.done(0x10);
  flight.look(now += 3 * kMs);
  CHECK(flight.cost_ns() >= 3 * kMs);
  flight.add(one, now);
  flight.close();
  gpu.done(0x10);
  flight.look(now += 20 * kUs);
  CHECK(flight.cost_ns() > 2 * kMs);
}

TEST_CASE("the time before a batch's first submission, and that of the batch before it, are not its") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  u64 now = 1000 * kMs;
  teach(gpu, flight, one, 0x10, now, 100 * kUs);
  now += 50 * kMs;  // idle
  flight.add(one, now);
  flight.close();
  flight.add(one, now);
  flight.close();
  gpu.one_done(0x10);
  flight.look(now += 100 * kUs);
  gpu.one_done(0x10);
  flight.look(now += 100 * kUs);
  CHECK(flight.is_empty());
  CHECK(flight.cost_ns() < 120 * kUs);
}

TEST_CASE("words are used again after many marks, and never mistaken") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto one = gpu.stream(0x10);
  for (u64 i = 0; i < 2000; ++i) {
    flight.add(one, i * kMs);
    flight.close();
    flight.look(i * kMs);
    REQUIRE(!flight.is_empty());
    gpu.done(0x10);
    flight.look(i * kMs);
    REQUIRE(flight.is_empty());
  }
}

TEST_CASE("a word whose mark has not been written is not used again") {
  MarkedGpu gpu;
  InFlight flight(gpu.worker, gpu.make_current());
  const auto standing = gpu.stream(0x10);
  const auto one = gpu.stream(0x20);
  flight.add(standing, 1 * kMs);
  flight.close();
  for (u64 i = 2; i < 2000; ++i) {
    flight.add(one, i * kMs);
    flight.close();
    gpu.done(0x20);
  }
  flight.look(3000 * kMs);
  CHECK(!flight.is_empty());
  gpu.done(0x10);
  flight.look(3000 * kMs);
  CHECK(flight.is_empty());
}

}  // namespace
}  // namespace gpupool::worker
