// Where cuMemCreate's memory lies.
#include "hostd/softgpu/api/physical.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace gpupool::softgpu {

namespace {

constexpr const char* kFilePrefix = "gpupool-softgpu-";

// The file of one device, and which parts of it are free.
struct Store {
  std::mutex mutex;
  int file = -1;
  std::map<u64, u64> free;  // offset to size
};

Store& store_of(const Device& device) {
  static auto* all = new std::array<Store, kMaxDevices>;
  return (*all)[static_cast<u32>(device.ordinal)];
}

int make_file(const Device& device, u64 size) {
  const std::string name = kFilePrefix + std::to_string(device.ordinal);
  const int file = memfd_create(name.c_str(), MFD_CLOEXEC);
  require(file >= 0, CUDA_ERROR_OPERATING_SYSTEM);
  if (ftruncate(file, static_cast<off_t>(size)) != 0) {
    close(file);
    fail(CUDA_ERROR_OUT_OF_MEMORY);
  }
  return file;
}

void give(std::map<u64, u64>& free, Extent extent) {
  auto next = free.lower_bound(extent.offset);
  if (next != free.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == extent.offset) {
      extent.offset = before->first;
      extent.size += before->second;
      free.erase(before);
    }
  }
  if (next != free.end() && next->first == extent.offset + extent.size) {
    extent.size += next->second;
    free.erase(next);
  }
  free[extent.offset] = extent.size;
}

void leave_something(int file, const Extent& extent) {
  if (leftover_byte() == 0) return;
  const std::vector<u8> block(kGranularity, leftover_byte());
  for (u64 at = 0; at < extent.size; at += block.size())
    require(pwrite(file, block.data(), std::min<u64>(block.size(), extent.size - at),
                   static_cast<off_t>(extent.offset + at)) > 0,
            CUDA_ERROR_OUT_OF_MEMORY);
}

}  // namespace

Physical::~Physical() {
  if (own_file) {
    if (file >= 0) close(file);
  } else if (device != nullptr && !extents.empty()) {
    Store& store = store_of(*device);
    const std::lock_guard lock(store.mutex);
    for (const Extent& extent : extents) {
      // Who gets these pages next must read zeros; if the system cannot do that, they are not given out
      // again.
      if (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(extent.offset),
                    static_cast<off_t>(extent.size)) == 0)
        give(store.free, extent);
      else
        log_line("cannot empty freed memory: %llu bytes are lost",
                 static_cast<unsigned long long>(extent.size));
    }
  }
  if (charged) device->release(size);
}

bool Physical::map(u64 address, u64 offset, u64 bytes) const {
  for (const Extent& extent : extents) {
    if (bytes == 0) break;
    if (offset >= extent.size) {
      offset -= extent.size;
      continue;
    }
    const u64 piece = std::min(bytes, extent.size - offset);
    if (mmap(reinterpret_cast<void*>(address), piece, PROT_NONE, MAP_SHARED | MAP_FIXED, file,
             static_cast<off_t>(extent.offset + offset)) == MAP_FAILED)
      return false;
    address += piece;
    bytes -= piece;
    offset = 0;
  }
  return bytes == 0;
}

std::shared_ptr<Physical> make_physical(Device& device, u64 size, bool exportable) {
  auto physical = std::make_shared<Physical>();
  physical->device = &device;
  physical->size = size;
  require(device.charge(size), CUDA_ERROR_OUT_OF_MEMORY);
  physical->charged = true;
  if (exportable) {
    physical->own_file = true;
    physical->file = make_file(device, size);
    physical->extents.push_back({0, size});
    leave_something(physical->file, physical->extents.back());
    return physical;
  }
  Store& store = store_of(device);
  const std::lock_guard lock(store.mutex);
  if (store.file < 0) {
    store.file = make_file(device, device.memory_bytes);
    store.free[0] = device.memory_bytes / kGranularity * kGranularity;
  }
  physical->file = store.file;
  u64 missing = size;
  while (missing != 0 && !store.free.empty()) {
    const auto range = store.free.begin();
    const Extent extent{range->first, std::min(missing, range->second)};
    const u64 rest = range->second - extent.size;
    store.free.erase(range);
    if (rest != 0) store.free[extent.offset + extent.size] = rest;
    physical->extents.push_back(extent);
    missing -= extent.size;
  }
  if (missing !=
      0) {  // the charge says that there is room; pages that could not be emptied are why there is not
    for (const Extent& extent : physical->extents) give(store.free, extent);
    physical->extents.clear();
    fail(CUDA_ERROR_OUT_OF_MEMORY);
  }
  for (const Extent& extent : physical->extents) leave_something(physical->file, extent);
  return physical;
}

std::shared_ptr<Physical> import_physical(int file) {
  char link[64], target[256];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, target, sizeof target - 1);
  require(length > 0);
  target[length] = 0;
  int ordinal = -1;
  require(std::sscanf(target, "/memfd:gpupool-softgpu-%d", &ordinal) == 1);
  struct stat facts {};
  require(fstat(file, &facts) == 0 && facts.st_size > 0);
  auto physical = std::make_shared<Physical>();
  physical->device = &device_of(ordinal);
  physical->size = static_cast<u64>(facts.st_size);
  physical->own_file = true;
  physical->extents.push_back({0, physical->size});
  physical->file = fcntl(file, F_DUPFD_CLOEXEC, 0);
  require(physical->file >= 0, CUDA_ERROR_OPERATING_SYSTEM);
  return physical;
}

}  // namespace gpupool::softgpu
