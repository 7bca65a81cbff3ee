// One split virtqueue, from the device's side (Virtual I/O Device 1.2, 2.7), with indirect descriptors and
// EVENT_IDX.
//
// The guest writes its parts of the ring while we look: every word of it is loaded once and checked as the
// copy that it is. A ring that cannot be right (an index ahead of the queue, a chain that loops, an address
// outside the guest's memory) makes the queue broken for good: reason() says why.
#pragma once

#include <sys/uio.h>

#include <string>
#include <vector>

#include "hostd/vsock/guest_memory.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

// A buffer of the guest's: what it lets us read, and what it lets us write, in memory of ours to address.
struct Chain {
  u16 head = 0;
  std::vector<iovec> readable;
  std::vector<iovec> writable;
  u64 readable_bytes = 0;
  u64 writable_bytes = 0;
};

// Where a ring is, by QEMU's addresses.
struct RingPlace {
  u32 size = 0;
  u64 descriptors = 0;
  u64 available = 0;
  u64 used = 0;
};

class Virtqueue {
 public:
  // recvmsg() and sendmsg() take no more parts (IOV_MAX).
  static constexpr size_t kMostParts = 1024;
  static constexpr u32 kMostEntries = 1024;

  // Begins to serve at index `next`. False with `error` if the ring is not in the guest's memory.
  bool start(const GuestMemory& memory, const RingPlace& place, u16 next, bool event_index,
             std::string& error);
  // Finds the ring again after the memory has been mapped anew.
  bool move(const GuestMemory& memory, std::string& error);
  // Ends serving; the index at which a later start() goes on.
  u16 stop();
  [[nodiscard]] bool running() const { return memory_ != nullptr && reason_.empty(); }
  [[nodiscard]] const std::string& reason() const { return reason_; }

  // The next buffer that the guest offers. False when there is none or the queue is broken.
  bool pop(Chain& chain);
  // Gives the last `count` popped buffers back, unused.
  void unpop(u16 count) { next_ = static_cast<u16>(next_ - count); }
  // A popped buffer has been used, and `written` bytes written into it. publish() shows it to the guest.
  void push(u16 head, u32 written);
  // True when the guest wants to be called.
  bool publish();
  // Asks for a kick when the guest offers more. True if it has already.
  bool arm();
  void break_with(std::string reason);

 private:
  struct Entry {  // a descriptor, 2.7.5
    u64 address = 0;
    u32 bytes = 0;
    u16 flags = 0;
    u16 next = 0;
  };

  bool walk(Chain& chain);
  bool add(const Entry& entry, Chain& chain);
  [[nodiscard]] u16 offered() const;
  [[nodiscard]] u16* available(u32 word) const { return available_ + word; }

  const GuestMemory* memory_ = nullptr;
  RingPlace place_;
  const std::byte* descriptors_ = nullptr;
  u16* available_ = nullptr;
  std::byte* used_ring_ = nullptr;
  u16 next_ = 0;   // of the available ring
  u16 used_ = 0;   // as pushed
  u16 shown_ = 0;  // as published
  bool event_index_ = false;
  bool called_ = false;  // `shown_` was weighed against the guest's used_event before
  std::string reason_;
};

}  // namespace gpupool::vsock
