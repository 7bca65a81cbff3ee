// Target: whole sessions against the software GPU, with strict handles: a message that makes the worker pass
// a stale object to the driver ends the process, as it may with NVIDIA's.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "hostd/worker/log.hpp"
#include "tests/fuzz/play.hpp"

using namespace gpupool;

namespace {

CUcontext g_primary = nullptr;

void register_window(fuzz::Harness& harness) {
  harness.driver.cuCtxSetCurrent(g_primary);
  harness.driver.cuMemHostRegister_v2(harness.window.base, wire::kHeapOffset,
                                      CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
}

// The worker retains the primary context for ever and registers the window in it once.
void begin(fuzz::Harness& harness) {
  if (g_primary != nullptr) return;
  fuzz::warm_up(harness);
  harness.driver.cuDevicePrimaryCtxRetain(&g_primary, harness.devices[0]);
}

void end(fuzz::Harness& harness) {
  harness.driver.cuCtxSetCurrent(g_primary);
  harness.driver.cuCtxSynchronize();
  fuzz::free_memory();
  harness.driver.cuDevicePrimaryCtxReset_v2(harness.devices[0]);
  register_window(harness);
}

// The client's thread that runs host functions: they return at once.
void release_host_functions(wire::Window window) {
  while (true) {
    const u64 request = window.word(0).value.load(std::memory_order_acquire);
    window.control().host_released.store(request >> 32, std::memory_order_release);
    usleep(200);
  }
}

fuzz::Harness make_harness() {
  worker::configure_log({.lowest = static_cast<worker::LogLevel>(99)}, 0);
  setenv("GPUPOOL_SOFTGPU_MEMORY_MIB", "16", 1);
  setenv("GPUPOOL_SOFTGPU_THREADS", "1", 1);
  fuzz::Harness made;
  std::string error;
  if (!made.driver.load(GPUPOOL_FUZZ_LIBRARY, error) || made.driver.cuInit(0) != CUDA_SUCCESS) {
    std::fprintf(stderr, "no software GPU: %s\n", error.c_str());
    std::abort();
  }
  fuzz::bound_driver(made.driver);
  made.devices = {0};
  made.window = fuzz::map_window();
  made.own_thread = true;
  made.before_session = begin;
  made.after_session = end;
  std::thread(release_host_functions, made.window).detach();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  static fuzz::Harness harness = make_harness();
  fuzz::play(harness, fuzz::parse({data, size}));
  return 0;
}
