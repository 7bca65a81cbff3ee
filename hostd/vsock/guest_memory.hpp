// The guest's memory as this process sees it: regions that QEMU has handed over, by the guest's physical
// addresses and by QEMU's own ("user") addresses, which the vhost-user protocol uses for the rings.
//
// Invariant: an address leaves this class only as a range that was checked to lie in mapped memory as a
// whole.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <string>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

struct Region {
  u64 guest = 0;  // the guest's physical address
  u64 bytes = 0;
  u64 user = 0;             // QEMU's address of the same
  std::byte* at = nullptr;  // ours
};

class GuestMemory {
 public:
  GuestMemory() = default;
  GuestMemory(GuestMemory&& other) noexcept;
  GuestMemory& operator=(GuestMemory&& other) noexcept;
  ~GuestMemory() { clear(); }

  // Maps `region.bytes` of the file from `offset` on. False with `error` if the file does not hold them.
  bool map(Region region, u64 offset, int file, std::string& error);
  // Memory of the caller's, which outlives this.
  void add(const Region& region) { regions_.push_back(region); }
  void clear();
  [[nodiscard]] bool empty() const { return regions_.empty(); }

  // Appends where those bytes are; more than one part where they lie in adjacent regions. False, and nothing
  // appended, if one of them is not the guest's memory.
  bool slice(u64 guest, u64 bytes, std::vector<iovec>& parts) const;
  // The bytes at an address of the guest's, or of QEMU's, in one piece; nullptr if they are not there.
  [[nodiscard]] std::byte* at_guest(u64 guest, u64 bytes) const;
  [[nodiscard]] std::byte* at_user(u64 user, u64 bytes) const;

 private:
  struct Mapping {
    void* at = nullptr;
    u64 bytes = 0;
  };

  std::vector<Region> regions_;
  std::vector<Mapping> mappings_;
};

}  // namespace gpupool::vsock
