#include "hostd/worker/usage_page.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "hostd/worker/log.hpp"

namespace gpupool::worker {

UsagePage* open_usage_page(int fd, u64 devices) {
  alignas(64) static u8 own[UsagePage::kBytes];
  void* memory = own;
  if (fd >= 0) {
    void* mapped = mmap(nullptr, UsagePage::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
      memory = mapped;
    else
      log(LogLevel::error, "cannot map the usage page; NVML in the guest shows nothing of this session",
          std::strerror(errno));
  }
  auto* page = static_cast<UsagePage*>(memory);
  page->devices.store(static_cast<u32>(std::min<u64>(devices, wire::kMaxDevices)), std::memory_order_relaxed);
  page->magic.store(UsagePage::kMagic, std::memory_order_release);
  return page;
}

}  // namespace gpupool::worker
