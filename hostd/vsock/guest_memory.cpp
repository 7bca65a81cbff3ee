#include "hostd/vsock/guest_memory.hpp"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace gpupool::vsock {

GuestMemory::GuestMemory(GuestMemory&& other) noexcept
    : regions_(std::exchange(other.regions_, {})), mappings_(std::exchange(other.mappings_, {})) {}

GuestMemory& GuestMemory::operator=(GuestMemory&& other) noexcept {
  if (this == &other) return *this;
  clear();
  regions_ = std::exchange(other.regions_, {});
  mappings_ = std::exchange(other.mappings_, {});
  return *this;
}

void GuestMemory::clear() {
  for (const Mapping& mapping : mappings_) munmap(mapping.at, mapping.bytes);
  mappings_.clear();
  regions_.clear();
}

bool GuestMemory::map(Region region, u64 offset, int file, std::string& error) {
  struct stat facts {};
  u64 end = 0;
  u64 unused = 0;
  if (region.bytes == 0 || __builtin_add_overflow(offset, region.bytes, &end) ||
      __builtin_add_overflow(region.guest, region.bytes, &unused) ||
      __builtin_add_overflow(region.user, region.bytes, &unused)) {
    error = "a memory region beyond the address space";
    return false;
  }
  if (fstat(file, &facts) != 0 || facts.st_size < 0 || static_cast<u64>(facts.st_size) < end) {
    error = "a memory region beyond its file";
    return false;
  }
  // From the file's start: huge pages can be mapped only from a multiple of their size on.
  void* at = mmap(nullptr, end, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (at == MAP_FAILED) {
    error = std::string("mmap of guest memory: ") + std::strerror(errno);
    return false;
  }
  mappings_.push_back({at, end});
  region.at = static_cast<std::byte*>(at) + offset;
  regions_.push_back(region);
  return true;
}

bool GuestMemory::slice(u64 guest, u64 bytes, std::vector<iovec>& parts) const {
  const size_t before = parts.size();
  while (bytes != 0) {
    const auto found = std::ranges::find_if(
        regions_, [&](const Region& one) { return guest >= one.guest && guest - one.guest < one.bytes; });
    if (found == regions_.end()) {
      parts.resize(before);
      return false;
    }
    const u64 inside = guest - found->guest;
    const u64 here = std::min(bytes, found->bytes - inside);
    parts.push_back({found->at + inside, here});
    bytes -= here;
    guest += here;  // no overflow: a region ends within the address space
  }
  return true;
}

std::byte* GuestMemory::at_guest(u64 guest, u64 bytes) const {
  for (const Region& one : regions_)
    if (guest >= one.guest && guest - one.guest < one.bytes && bytes <= one.bytes - (guest - one.guest))
      return one.at + (guest - one.guest);
  return nullptr;
}

std::byte* GuestMemory::at_user(u64 user, u64 bytes) const {
  for (const Region& one : regions_)
    if (user >= one.user && user - one.user < one.bytes && bytes <= one.bytes - (user - one.user))
      return one.at + (user - one.user);
  return nullptr;
}

}  // namespace gpupool::vsock
