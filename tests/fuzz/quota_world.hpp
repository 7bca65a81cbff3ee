// What fuzz_quota plays with (quota.cpp).
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "hostd/worker/log.hpp"
#include "hostd/worker/memory_account.hpp"
#include "hostd/worker/worker.hpp"

namespace gpupool::fuzz {

using namespace gpupool::worker;
using pages::AccountPage;
using pages::QuotaPage;

constexpr u32 kDevices = 2, kOurs = 3, kOther = 9, kLiar = 17;
constexpr u64 kMib = 1u << 20;

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "the account is wrong: %s\n", what);
  std::abort();
}

// What the input says, byte by byte; zeros after its end.
class Input {
 public:
  Input(const u8* data, size_t size) : at_(data), end_(data + size) {}
  [[nodiscard]] bool empty() const { return at_ == end_; }
  u8 byte() { return at_ == end_ ? 0 : *at_++; }
  u64 number() {
    u64 value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return value;
  }
  // Small ones, some around the quota, and such that overflow.
  u64 size() {
    const u8 kind = byte();
    if (kind < 128) return (u64{kind} + 1) << 9;
    if (kind < 200) return u64{kind - 127u} * 64 << 10;
    if (kind < 240) return u64{kind - 199u} * kMib / 2 + (kind & 1u);
    if (kind < 248) return kind - 240u;
    if (kind < 252) return ~u64{0} - (kind - 248u) * 511;
    return number();
  }

 private:
  const u8* at_;
  const u8* end_;
};

template <typename Page>
Page& make_page() {
  void* made = mmap(nullptr, Page::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) std::abort();
  return *static_cast<Page*>(made);
}

// A worker with two vGPUs on the software GPU, and the pages that others of the vGPUs share with it.
struct World {
  Worker worker;
  std::array<CUcontext, kDevices> contexts{};
  QuotaPage& quota = make_page<QuotaPage>();
  std::array<AccountPage*, kDevices> account{&make_page<AccountPage>(), &make_page<AccountPage>()};
  std::array<VgpuMemory, kDevices> other;

  World() {
    configure_log({.lowest = static_cast<LogLevel>(99)}, 0);
    setenv("GPUPOOL_SOFTGPU_DEVICES", "2", 1);
    setenv("GPUPOOL_SOFTGPU_MEMORY_MIB", "16", 1);
    setenv("GPUPOOL_SOFTGPU_THREADS", "1", 1);
    std::string error;
    if (!worker.driver.load(GPUPOOL_FUZZ_LIBRARY, error) || worker.driver.cuInit(0) != CUDA_SUCCESS) {
      std::fprintf(stderr, "no software GPU: %s\n", error.c_str());
      std::abort();
    }
    for (u32 device = 0; device < kDevices; ++device) {
      worker.devices.push_back(static_cast<CUdevice>(device));
      worker.driver.cuDevicePrimaryCtxRetain(&contexts[device], static_cast<CUdevice>(device));
      worker.contexts.put(wire::Handle::make(wire::HandleKind::context, 0, device + 1), contexts[device]);
      worker.memory[device] = VgpuMemory(quota, device, *account[device], kOurs);
      other[device] = VgpuMemory(quota, device, *account[device], kOther);
    }
    account_memory(worker);
  }
};

}  // namespace gpupool::fuzz
