#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "hostd/worker/launch_crew.hpp"

namespace gpupool::worker {
namespace {

// A launch takes long enough for whoever comes next to find it not issued.
DriverApi slow_driver() {
  DriverApi driver;
  driver.cuCtxSetCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  driver.cuLaunchKernel = [](CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             CUstream, void**, void**) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return CUDA_SUCCESS;
  };
  return driver;
}

wire::Handle stream_of(u32 index) {
  return wire::Handle::make(wire::HandleKind::stream, 1, index);
}

// What the worker sees of a client that launches on two streams in turn.
class Client {
 public:
  // Whether the crew takes the next launch, which another one follows.
  bool chance(LaunchCrew& crew) {
    ++ticket_;
    next_.sequence.store(ticket_ + 2, std::memory_order_relaxed);
    next_.function = static_cast<u16>(wire::Function::cuLaunchKernel);
    next_.stream = stream_of(2);
    return crew.wants(stream_of(1), next_, ticket_ + 1);
  }
  // The client does something else in between.
  void something_else() { ++ticket_; }
  // How many launches in a row the crew refuses.
  u32 refused(LaunchCrew& crew) {
    u32 count = 0;
    while (!chance(crew) && count < 1000) ++count;
    return count;
  }

 private:
  wire::Slot next_{};
  u64 ticket_ = 0;
};

// As many launches, then other work on the same stream.
void burst(LaunchCrew& crew, const DriverApi& driver, u32 launches) {
  for (u32 i = 0; i < launches; ++i) {
    crew.prepare(driver, stream_of(1));
    crew.push(stream_of(1));
  }
  crew.settle(stream_of(1));
}

}  // namespace

TEST_CASE("the crew comes for many launches in a row, and leaves off where they are waited for") {
  // Its threads go on until the process ends.
  static const DriverApi driver = slow_driver();
  static LaunchCrew crew(1);
  Client client;
  CHECK(client.refused(crew) == 31);
  burst(crew, driver, 1);
  CHECK_FALSE(crew.active());
  // What is waited for came between.
  client.something_else();
  CHECK(client.refused(crew) == 31);
  burst(crew, driver, 7);
  CHECK_FALSE(crew.active());
  // A program with other work behind each few launches never gets it.
  for (int i = 0; i < 100; ++i) {
    client.something_else();
    for (int j = 0; j < 20; ++j) CHECK_FALSE(client.chance(crew));
  }
  // A burst that pays goes on.
  client.something_else();
  CHECK(client.refused(crew) == 31);
  burst(crew, driver, 64);
  CHECK(crew.active());
  // The client was slower for a moment: there was nothing in between.
  crew.settle_all();
  CHECK(crew.all_issued());
  CHECK(client.refused(crew) == 0);
}

}  // namespace gpupool::worker
