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

// What the worker would see of a client that launches on two streams in turn.
class Client {
 public:
  // Whether the crew would take a launch that is followed by one on the other stream.
  bool chance(LaunchCrew& crew) {
    next_.sequence.store(8, std::memory_order_relaxed);
    next_.function = static_cast<u16>(wire::Function::cuLaunchKernel);
    next_.stream = stream_of(2);
    return crew.wants(stream_of(1), next_, 7);
  }

 private:
  wire::Slot next_{};
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

TEST_CASE("the crew leaves off where each launch is waited for, and comes back later each time") {
  // Its threads go on until the process ends.
  static const DriverApi driver = slow_driver();
  static LaunchCrew crew(1);
  Client client;
  const auto let_go = [&] {
    u32 refused = 0;
    while (!client.chance(crew) && refused < 10'000) ++refused;
    return refused;
  };
  CHECK(let_go() == 0);
  burst(crew, driver, 1);
  CHECK_FALSE(crew.active());
  CHECK(let_go() == 8);
  burst(crew, driver, 7);
  CHECK(let_go() == 24);
  for (int i = 0; i < 12; ++i) {
    burst(crew, driver, 1);
    CHECK(let_go() <= 4096);
  }
  // A burst that pays goes on, and makes it forget.
  burst(crew, driver, 64);
  CHECK(crew.active());
  crew.settle_all();
  CHECK(let_go() == 0);
  burst(crew, driver, 1);
  CHECK(let_go() == 8);
}

}  // namespace gpupool::worker
