// Target: every message handler, generated and hand-written, with a driver that does nothing. Fast; what the
// driver would be given is checked by `session`.
#include "hostd/worker/log.hpp"
#include "tests/fuzz/play.hpp"

using namespace gpupool;

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  static fuzz::Harness harness = [] {
    worker::configure_log({.lowest = static_cast<worker::LogLevel>(99)}, 0);
    fuzz::Harness made;
    fuzz::make_up_driver(made.driver);
    made.devices = {0, 1};
    made.window = fuzz::map_window();
    return made;
  }();
  fuzz::play(harness, fuzz::parse({data, size}));
  return 0;
}
