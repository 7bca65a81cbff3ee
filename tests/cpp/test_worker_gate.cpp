// The compute lease as the worker keeps it: when what submits work may be executed, and what the arbiter is
// told.
#include <doctest/doctest.h>

#include <thread>

#include "hostd/worker/gate.hpp"
#include "hostd/worker/lease_class.hpp"
#include "tests/cpp/marked_gpu.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
namespace {

using pages::LeasePage;
using pages::LeaseState;

constexpr u64 kUs = 1000;
constexpr u64 kMs = 1'000'000;
constexpr u64 kS = 1'000'000'000;

// A session with two GPUs, the first one's context current, and the arbiter's ends of their pages.
class Lease {
 public:
  Lease() {
    gpu.worker.leases = {page.get(), other.get()};
    gate = std::make_unique<Gate>(gpu.worker, gpu.make_current());
    stream = gpu.stream(0x10);
    enter(1);
  }
  void enter(u32 context) {
    gpu.entered = context;
    gate->entered(context);
  }
  static void hold(LeasePage& of, u64 number, u64 for_ns) {
    const u64 now = wire::monotonic_ns();
    of.grant.beat_ns = now;
    of.grant.end_ns = now + for_ns;
    of.grant.number = number;
    of.grant.state = LeaseState::held;
    ++of.grant.turn;
  }
  void hold(u64 number, u64 for_ns = 10 * kS) { hold(*page, number, for_ns); }
  void shut() {
    page->grant.beat_ns = wire::monotonic_ns();
    page->grant.state = LeaseState::shut;
    ++page->grant.turn;
  }
  // A launch on the stream, as the dispatcher tries it.
  bool submit(wire::Handle on) {
    wire::Slot slot{};
    slot.stream = on;
    return gate->admit(slot);
  }
  bool submit() { return submit(stream); }
  // So many launches that take that long each.
  void teach(u64 cost_ns) {
    for (int i = 0; i < 16; ++i) {
      REQUIRE(submit());
      const u64 until = wire::monotonic_ns() + cost_ns;
      while (wire::monotonic_ns() < until) {
      }
      gate->tend(wire::monotonic_ns() + 60 * kUs);  // closes what is open
      gpu.done(0x10);
      gate->tend(wire::monotonic_ns());
    }
  }
  bool wants() const { return page->want.wants != 0; }
  bool busy() const { return page->want.busy != 0; }

  std::unique_ptr<LeasePage> page = std::make_unique<LeasePage>();
  std::unique_ptr<LeasePage> other = std::make_unique<LeasePage>();
  MarkedGpu gpu;
  std::unique_ptr<Gate> gate;
  wire::Handle stream;
};

TEST_CASE("without an arbiter, or where nobody has to wait, nothing is watched") {
  Lease lease;
  CHECK(!lease.gate->is_watched());
  lease.shut();
  CHECK(lease.gate->is_watched());
  lease.enter(0);
  CHECK(!lease.gate->is_watched());
  Worker bare;  // a session without pages
  Gate gate(bare, [](u32) { return true; });
  gate.entered(1);
  CHECK(!gate.is_watched());
}

TEST_CASE("whoever holds the lease submits and says so") {
  Lease lease;
  lease.hold(1);
  CHECK(lease.submit());
  CHECK(lease.busy());
  CHECK(!lease.wants());
}

TEST_CASE("whoever does not hold it waits, asks once, and goes on when it comes") {
  Lease lease;
  lease.shut();
  const u32 bell = lease.page->want.bell;
  CHECK(!lease.submit());
  CHECK(lease.wants());
  CHECK(!lease.busy());
  CHECK(lease.page->want.bell == bell + 1);
  CHECK(!lease.gate->drains());
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(lease.page->want.bell == bell + 1);
  lease.hold(1);
  CHECK(lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(lease.submit());
  CHECK(!lease.wants());
}

TEST_CASE("a lease that is shut is drained, and only then given up") {
  Lease lease;
  lease.hold(1);
  REQUIRE(lease.submit());
  lease.shut();
  CHECK(!lease.submit());
  CHECK(lease.gate->drains());
  CHECK(lease.busy());
  CHECK(lease.gpu.marks == 1);
  const u32 bell = lease.page->want.bell;
  lease.gpu.done(0x10);
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(!lease.busy());
  CHECK(lease.wants());
  CHECK(lease.page->want.bell != bell);
}

TEST_CASE("one who has nothing more to submit gives a shut lease up as well") {
  Lease lease;
  lease.hold(1);
  REQUIRE(lease.submit());
  lease.shut();
  lease.gate->tend(wire::monotonic_ns() + 60 * kUs);
  CHECK(lease.busy());
  CHECK(lease.gate->due_ns() != ~u64{0});
  lease.gpu.done(0x10);
  lease.gate->tend(wire::monotonic_ns());
  CHECK(!lease.busy());
  CHECK(!lease.wants());
}

TEST_CASE("an idle holder keeps its lease for a moment, and for twice its usual gap") {
  Lease lease;
  lease.hold(1);
  lease.teach(0);
  REQUIRE(lease.submit());
  u64 now = wire::monotonic_ns() + 60 * kUs;
  lease.gate->tend(now);
  lease.gpu.done(0x10);
  lease.gate->tend(now);
  CHECK(lease.busy());
  lease.gate->tend(now + 200 * kUs);
  CHECK(lease.busy());
  lease.gate->tend(now + 4 * kMs);
  CHECK(!lease.busy());
  CHECK(lease.gate->due_ns() == ~u64{0});
}

TEST_CASE("what would not be done at the end of the lease is not started") {
  Lease lease;
  lease.hold(1);
  lease.teach(2 * kMs);
  lease.hold(2, 3 * kMs);
  CHECK(lease.submit());  // the first one of a lease always
  CHECK(!lease.submit());
  CHECK(lease.page->want.done == 2);
  CHECK(lease.wants());
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns()));
  lease.gpu.done(0x10);
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(!lease.busy());
  lease.hold(3);
  CHECK(lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(lease.submit());
}

TEST_CASE("little is in flight, unless it may wait for what comes") {
  Lease lease;
  lease.hold(1);
  lease.teach(600 * kUs);
  u32 admitted = 0;
  while (admitted < 20 && lease.submit()) ++admitted;
  CHECK(admitted >= 2);
  CHECK(admitted <= 4);
  CHECK(!lease.wants());  // it has its lease, and waits for room
  CHECK(lease.busy());
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(lease.gate->may_go_on(wire::monotonic_ns() + 1 * kS));
  CHECK(lease.submit());
  CHECK(lease.submit());
  lease.gpu.done(0x10);
  CHECK(lease.submit());
}

TEST_CASE("what is recorded into a graph is not submitted") {
  Lease lease;
  lease.shut();
  lease.gpu.worker.streams.find(lease.stream)->capturing = true;
  CHECK(lease.submit());
  CHECK(!lease.wants());
  CHECK(!lease.submit(lease.gpu.stream(0x20)));
}

TEST_CASE("what is on a stream that is captured or destroyed next is marked before") {
  Lease lease;
  lease.hold(1);
  REQUIRE(lease.submit());
  CHECK(lease.gpu.marks == 0);
  lease.gate->mark();
  CHECK(lease.gpu.marks == 1);
  using enum wire::Function;
  for (const auto function : {cuStreamBeginCapture_v2, cuStreamBeginCaptureToGraph, cuStreamDestroy_v2})
    CHECK(needs_mark(function, false));
  CHECK(needs_mark(cuStreamWaitEvent, true));  // joins a capture
  CHECK(!needs_mark(cuStreamWaitEvent, false));
  CHECK(!needs_mark(cuEventRecordWithFlags, true));
}

TEST_CASE("work without a stream, which nobody could wait for, ends the session") {
  Lease lease;
  lease.hold(1);
  CHECK_THROWS_AS(lease.submit(wire::Handle{}), wire::ProtocolError);
}

TEST_CASE("work from before there were leases is waited for, too") {
  Lease lease;
  lease.gpu.worker.streams.find(lease.stream)->noted = true;  // activity.hpp
  lease.shut();
  CHECK(!lease.submit(lease.gpu.stream(0x20)));
  CHECK(lease.busy());
  CHECK(lease.gate->drains());
  lease.gpu.done(0x10);
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(!lease.busy());
}

TEST_CASE("leases end: what waits goes on, and nothing is watched any more") {
  Lease lease;
  lease.shut();
  REQUIRE(!lease.submit());
  lease.page->grant.state = LeaseState::free;
  CHECK(lease.gate->may_go_on(wire::monotonic_ns()));
  CHECK(lease.submit());
  CHECK(!lease.wants());
  CHECK(!lease.busy());
  CHECK(!lease.gate->is_watched());
}

TEST_CASE("a silent arbiter is not waited for; one that is back is") {
  Lease lease;
  lease.shut();
  REQUIRE(!lease.submit());
  CHECK(!lease.gate->may_go_on(wire::monotonic_ns() + 900 * kMs));
  CHECK(lease.gate->may_go_on(wire::monotonic_ns() + 1100 * kMs));
  lease.page->grant.beat_ns = wire::monotonic_ns() - 2 * kS;
  CHECK(lease.submit());
  CHECK(lease.submit());
  lease.shut();
  CHECK(!lease.submit());
  CHECK(lease.wants());
}

TEST_CASE("each GPU of a session has a lease of its own") {
  Lease lease;
  lease.shut();
  Lease::hold(*lease.other, 7, 10 * kS);
  const auto there = lease.gpu.stream(0x20, 2);
  lease.enter(2);
  CHECK(lease.submit(there));
  CHECK(lease.other->want.busy == 1);
  CHECK(!lease.busy());
  lease.enter(1);
  CHECK(!lease.submit());
  CHECK(lease.wants());
  CHECK(lease.other->want.wants == 0);
}

TEST_CASE("work that is lost with its context is waited for by nobody") {
  Lease lease;
  lease.hold(1);
  REQUIRE(lease.submit());
  lease.gate->lost();
  CHECK(!lease.busy());
}

// An arbiter that shuts and looks, against a worker that says and looks: nothing is submitted after the
// arbiter has seen that nobody is busy.
TEST_CASE("worker and arbiter never both believe that the GPU is theirs") {
  Lease lease;
  lease.hold(1);
  std::atomic<bool> stop = false;
  std::atomic<u32> taken = 0;
  std::thread arbiter([&] {
    for (u64 number = 2; !stop; ++number) {
      lease.shut();
      for (int i = 0; i < 100'000 && lease.page->want.busy.load(std::memory_order_seq_cst) != 0; ++i) {
      }
      if (lease.page->want.busy.load(std::memory_order_seq_cst) == 0) {
        ++taken;  // odd: the GPU is another's
        for (int i = 0; i < 5000; ++i) static_cast<void>(taken.load());
        ++taken;
      }
      lease.hold(number);
      std::this_thread::yield();
    }
  });
  u32 wrong = 0;
  u32 submitted = 0;
  const u64 end = wire::monotonic_ns() + 20 * kS;
  while ((submitted < 200'000 || taken < 20'000) && wire::monotonic_ns() < end) {
    if (lease.submit()) {
      // While it says that it is busy, the arbiter takes nothing.
      for (int i = 0; i < 20; ++i)
        if (taken % 2 != 0) ++wrong;
      ++submitted;
    }
    lease.gpu.done(0x10);
    lease.gate->tend(wire::monotonic_ns() + 60 * kUs);
    lease.gpu.done(0x10);
    lease.gate->tend(wire::monotonic_ns());
  }
  stop = true;
  arbiter.join();
  CHECK(wrong == 0);
  CHECK(submitted > 0);
  CHECK(taken > 0);
}

}  // namespace
}  // namespace gpupool::worker
