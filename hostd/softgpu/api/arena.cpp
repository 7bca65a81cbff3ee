// The address space that device memory comes from.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

namespace {

// Above what a forwarding client proposes for its own placements (0x3000'0000'0000 upwards), below where
// Linux puts libraries; so neither our addresses nor its collide with anything in the other process.
constexpr u64 kArenaHint = 0x3800'0000'0000;
constexpr u64 kArenaStep = 0x0080'0000'0000;
constexpr u32 kArenaTries = 16;
constexpr u64 kArenaBytes = 1ull << 40;
constexpr u64 kSmallestArenaBytes = 1ull << 34;

// Makes [address, +bytes) read zero again. Whole pages go back to the system.
void empty(u64 address, u64 bytes) {
  const u64 first = round_up(address, kPageBytes), last = (address + bytes) / kPageBytes * kPageBytes;
  if (first >= last) {
    std::memset(reinterpret_cast<void*>(address), 0, bytes);
    return;
  }
  std::memset(reinterpret_cast<void*>(address), 0, first - address);
  std::memset(reinterpret_cast<void*>(last), 0, address + bytes - last);
  if (madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) != 0)
    std::memset(reinterpret_cast<void*>(first), 0, last - first);
}

}  // namespace

Arena& arena() {
  static auto* only = new Arena;
  return *only;
}

bool Arena::reserve() {
  for (u64 bytes = kArenaBytes; bytes >= kSmallestArenaBytes; bytes /= 4)
    for (u32 i = 0; i < kArenaTries; ++i) {
      void* hint = reinterpret_cast<void*>(kArenaHint + i * kArenaStep);
      void* got = mmap(hint, bytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
      if (got == MAP_FAILED) continue;
      if (got != hint) {  // a kernel before 4.17 ignores the flag
        munmap(got, bytes);
        continue;
      }
      begin_ = committed_ = reinterpret_cast<u64>(got);
      end_ = begin_ + bytes;
      large_[begin_] = bytes;
      return true;
    }
  return false;
}

// Cuts a piece out of the first free range it fits in; 0 when there is none.
// With `within`, pieces do not cross its multiples.
u64 Arena::take(std::map<u64, u64>& free, u64 bytes, u64 alignment, u64 within) {
  for (auto range = free.begin(); range != free.end(); ++range) {
    const u64 begin = range->first, end = begin + range->second;
    u64 at = round_up(begin, alignment);
    if (within != 0 && at / within != (at + bytes - 1) / within) at = round_up(at, within);
    if (at >= end || end - at < bytes) continue;
    free.erase(range);
    if (at > begin) free[begin] = at - begin;
    if (at + bytes < end) free[at + bytes] = end - at - bytes;
    return at;
  }
  return 0;
}

void Arena::give(std::map<u64, u64>& free, u64 address, u64 bytes) {
  auto next = free.lower_bound(address);
  if (next != free.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == address) {
      address = before->first;
      bytes += before->second;
      free.erase(before);
    }
  }
  if (next != free.end() && next->first == address + bytes) {
    bytes += next->second;
    free.erase(next);
  }
  free[address] = bytes;
}

u64 Arena::allocate(u64 bytes, u64 alignment) {
  const std::lock_guard lock(mutex_);
  if (begin_ == 0 && !reserve()) return 0;
  const bool small = bytes < kLargeBytes;
  if (small)
    if (const u64 address = take(small_, bytes, alignment, kLargeAlignment); address != 0) return address;
  const u64 whole = round_up(bytes, kLargeAlignment);
  const u64 address = take(large_, whole, std::max(alignment, kLargeAlignment), 0);
  if (address == 0) return 0;
  if (address + whole > committed_) {
    if (mprotect(reinterpret_cast<void*>(committed_), address + whole - committed_, PROT_READ | PROT_WRITE) !=
        0) {
      give(large_, address, whole);
      return 0;
    }
    committed_ = address + whole;
  }
  if (small && whole > bytes) give(small_, address + bytes, whole - bytes);
  return address;
}

std::shared_ptr<SharedFile> Arena::share(u64 address, u64 bytes, u64& offset) {
  const u64 begin = address / kLargeAlignment * kLargeAlignment;
  const u64 size = round_up(address + bytes, kLargeAlignment) - begin;
  offset = address - begin;
  const std::lock_guard lock(mutex_);
  if (const auto known = shared_.find(begin); known != shared_.end()) return known->second;
  auto file = SharedFile::create(size);
  const std::vector<u8> zeroes(kLargeAlignment);
  for (u64 at = 0; at < size; at += kLargeAlignment) {
    const void* block = reinterpret_cast<const void*>(begin + at);
    if (std::memcmp(block, zeroes.data(), kLargeAlignment) == 0) continue;  // the file is empty, too
    require(pwrite(file->fd(), block, kLargeAlignment, static_cast<off_t>(at)) ==
                static_cast<ssize_t>(kLargeAlignment),
            CUDA_ERROR_OUT_OF_MEMORY);
  }
  file->map(reinterpret_cast<void*>(begin));
  shared_.emplace(begin, file);
  return file;
}

// Back to memory of our own, empty.
void Arena::unshare(std::map<u64, std::shared_ptr<SharedFile>>::iterator shared) {
  void* const begin = reinterpret_cast<void*>(shared->first);
  const u64 bytes = shared->second->bytes();
  if (mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
           0) == MAP_FAILED)
    std::memset(begin, 0, bytes);
  else
    shared_.erase(shared);
}

void Arena::release(u64 address, u64 bytes) {
  const bool small = bytes < kLargeBytes;
  const u64 whole = small ? bytes : round_up(bytes, kLargeAlignment);
  const std::lock_guard lock(mutex_);
  if (const auto shared = shared_.find(address / kLargeAlignment * kLargeAlignment); shared == shared_.end())
    empty(address, whole);
  else if (small)
    std::memset(reinterpret_cast<void*>(address), 0, whole);  // its block stays in its file
  else
    unshare(shared);
  if (!small) {
    give(large_, address, whole);
    return;
  }
  give(small_, address, bytes);
  // Blocks of which nothing is used any more can serve large allocations again.
  auto range = std::prev(small_.upper_bound(address));
  const u64 begin = range->first, end = begin + range->second;
  const u64 first = round_up(begin, kLargeAlignment), last = end / kLargeAlignment * kLargeAlignment;
  if (first >= last) return;
  for (auto shared = shared_.lower_bound(first); shared != shared_.end() && shared->first < last;)
    unshare(shared++);
  small_.erase(range);
  if (first > begin) small_[begin] = first - begin;
  if (last < end) small_[last] = end - last;
  give(large_, first, last - first);
}

}  // namespace gpupool::softgpu
