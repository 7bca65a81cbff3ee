#include "hostd/worker/activity.hpp"

#include <algorithm>
#include <utility>

#include "wire/cpp/futex.hpp"

namespace gpupool::worker {

Activity::Activity(Worker& worker, MakeCurrent make_current)
    : worker_(worker), make_current_(std::move(make_current)) {}

void Activity::note(wire::Handle handle, StreamEntry& stream) {
  CUdevice device = 0;
  if (worker_.driver.cuCtxGetDevice == nullptr || worker_.driver.cuCtxGetDevice(&device) != CUDA_SUCCESS)
    return;
  const auto found = std::find(worker_.devices.begin(), worker_.devices.end(), device);
  const auto index = static_cast<u32>(found - worker_.devices.begin());
  if (found == worker_.devices.end() || index >= wire::kMaxDevices) return;
  stream.noted = true;
  used_.push_back(Used{handle, index});
  UsagePage::Device& page = worker_.usage->device[index];
  const u64 slot = wire::monotonic_ns() / UsagePage::kSampleNs;
  if (page.outstanding.load(std::memory_order_relaxed) == 0) {
    record(index, slot, false);  // idle up to here
    page.outstanding.store(1, std::memory_order_relaxed);
  }
  due_ns_ = std::min(due_ns_, (slot + 1) * UsagePage::kSampleNs);
}

bool Activity::busy(const Used& used, bool capturing, bool& keep) {
  StreamEntry* entry = worker_.streams.find(used.handle);
  keep = entry != nullptr;
  if (entry == nullptr) return false;
  const bool legacy = entry->stream == nullptr || entry->stream == CU_STREAM_LEGACY;
  // Asking a stream that is being captured, or the legacy stream meanwhile, would end the capture.
  if (entry->capturing || (legacy && capturing)) return false;
  const bool outstanding =
      make_current_(entry->context) && worker_.driver.cuStreamQuery(entry->stream) == CUDA_ERROR_NOT_READY;
  keep = outstanding;
  entry->noted = outstanding;
  return outstanding;
}

void Activity::sample(u64 now_ns) {
  const u64 slot = now_ns / UsagePage::kSampleNs;
  const bool capturing = std::any_of(used_.begin(), used_.end(), [&](const Used& used) {
    const StreamEntry* entry = worker_.streams.find(used.handle);
    return entry != nullptr && entry->capturing;
  });
  u32 seen = 0;  // devices that are busy: no need to ask about their other streams
  static_assert(wire::kMaxDevices <= 32);
  std::vector<Used> left;
  for (const Used& used : used_) {
    bool keep = true;
    if ((seen >> used.device & 1) == 0 && busy(used, capturing, keep)) seen |= 1u << used.device;
    // The busy one first: next time it is asked first, and the others mostly not at all.
    if (keep) left.insert((seen >> used.device & 1) != 0 ? left.begin() : left.end(), used);
  }
  used_ = std::move(left);
  for (u32 device = 0; device < std::min<u64>(worker_.devices.size(), wire::kMaxDevices); ++device) {
    const bool busy_now = (seen >> device & 1) != 0;
    record(device, slot, busy_now);
    worker_.usage->device[device].outstanding.store(busy_now ? 1 : 0, std::memory_order_relaxed);
  }
  due_ns_ = used_.empty() ? ~u64{0} : (slot + 1) * UsagePage::kSampleNs;
}

void Activity::record(u32 device, u64 slot, bool busy) {
  UsagePage::Device& page = worker_.usage->device[device];
  const u64 before = page.slot.load(std::memory_order_relaxed);
  if (slot <= before) return;
  const u64 age = std::min<u64>(slot - before, UsagePage::kSamples);
  u64 samples = page.samples.load(std::memory_order_relaxed) << age;
  if (page.outstanding.load(std::memory_order_relaxed) != 0) samples |= ((u64{1} << age) - 1) & ~u64{1};
  page.samples.store(samples | (busy ? 1 : 0), std::memory_order_relaxed);
  page.slot.store(slot, std::memory_order_relaxed);
}

}  // namespace gpupool::worker
