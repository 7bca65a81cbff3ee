// The guest's side of a virtio-vsock device: memory, three rings in it, and packets, as a guest's driver
// makes them. For tests, fuzzing and measuring; it checks nothing of what it is told to write.
#pragma once

#include <atomic>
#include <cstring>

#include "hostd/vsock/guest_memory.hpp"
#include "hostd/vsock/packet.hpp"
#include "hostd/vsock/virtqueue.hpp"

namespace gpupool::bench {

class VsockDriver {
 public:
  static constexpr u16 kNext = 1, kWrite = 2, kIndirect = 4;
  static constexpr u64 kGuestBase = u64{1} << 32, kUserBase = 0x7f00'0000'0000;
  static constexpr u32 kRingBytes = 0x4000;
  static constexpr u32 kDataOffset = 3 * kRingBytes;  // free for packets and buffers

  VsockDriver(std::byte* memory, u32 entries) : memory_(memory), entries_(entries) {}

  void boot() {
    std::memset(memory_, 0, kDataOffset);
    for (u32 ring = 0; ring < 3; ++ring) offered_[ring] = seen_[ring] = 0;
  }
  [[nodiscard]] static u64 guest(u64 offset) { return kGuestBase + offset; }
  [[nodiscard]] std::byte* at(u64 offset) const { return memory_ + offset; }
  [[nodiscard]] u32 entries() const { return entries_; }
  [[nodiscard]] vsock::RingPlace place(u32 ring) const {
    const u64 base = kUserBase + u64{ring} * kRingBytes;
    return {entries_, base, base + 0x1000, base + 0x2000};
  }

  void describe(u32 ring, u32 index, u64 address, u32 bytes, u16 flags, u16 next) {
    write_entry(ring * kRingBytes + index * 16, address, bytes, flags, next);
  }
  // Likewise in a table at that place of memory.
  void write_entry(u64 offset, u64 address, u32 bytes, u16 flags, u16 next) {
    std::memcpy(at(offset), &address, 8);
    std::memcpy(at(offset + 8), &bytes, 4);
    std::memcpy(at(offset + 12), &flags, 2);
    std::memcpy(at(offset + 14), &next, 2);
  }
  void offer(u32 ring, u16 head) {
    std::memcpy(available(ring) + 4 + 2 * (offered_[ring] % entries_), &head, 2);
    set_index(ring, ++offered_[ring]);
  }
  void set_index(u32 ring, u16 index) { word(available(ring) + 2).store(index); }
  void set_flags(u32 ring, u16 flags) { word(available(ring)).store(flags); }
  // "Call me when you have used that one."
  void wish_call(u32 ring, u16 index) { word(available(ring) + 4 + 2 * entries_).store(index); }
  // What the device wishes: a kick with that one.
  [[nodiscard]] u16 wished_kick(u32 ring) const { return word(used(ring) + 4 + 8 * entries_).load(); }

  [[nodiscard]] u16 offered(u32 ring) const { return offered_[ring]; }
  [[nodiscard]] u16 seen(u32 ring) const { return seen_[ring]; }
  [[nodiscard]] u16 used_index(u32 ring) const { return word(used(ring) + 2).load(); }
  struct Used {
    u32 head = 0, bytes = 0;
  };
  // The next used buffer; false if there is none.
  bool take(u32 ring, Used& element) {
    if (used_index(ring) == seen_[ring]) return false;
    std::memcpy(&element, used(ring) + 4 + 8 * (seen_[ring] % entries_), sizeof element);
    ++seen_[ring];
    return true;
  }

 private:
  [[nodiscard]] std::byte* available(u32 ring) const { return at(u64{ring} * kRingBytes + 0x1000); }
  [[nodiscard]] std::byte* used(u32 ring) const { return at(u64{ring} * kRingBytes + 0x2000); }
  static std::atomic_ref<u16> word(std::byte* at) {
    return std::atomic_ref<u16>(*reinterpret_cast<u16*>(at));
  }

  std::byte* memory_;
  u32 entries_;
  u16 offered_[3] = {}, seen_[3] = {};
};

}  // namespace gpupool::bench
