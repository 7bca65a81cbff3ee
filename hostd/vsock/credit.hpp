// Who may send how much on one connection (Virtual I/O Device 1.2, 5.10.6.3). Counters are of 32 bits and
// wrap. Nothing a guest says here can make us hold more than kBuffer bytes or send it what it has no room
// for by its own account.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

class Credit {
 public:
  static constexpr u32 kBuffer = 256 << 10;  // what we hold of a connection while its unix socket is full

  // What a packet of the guest's says of its own buffer.
  void learn(u32 buffer, u32 forwarded) {
    guest_buffer_ = buffer;
    guest_forwarded_ = forwarded;
  }
  // How much may be sent to the guest now.
  [[nodiscard]] u32 room() const {
    const u32 flying = sent_ - guest_forwarded_;
    return flying >= guest_buffer_ ? 0 : guest_buffer_ - flying;
  }
  void send(u32 bytes) { sent_ += bytes; }

  // The guest has sent that much. False if it had no room for it.
  bool receive(u32 bytes) {
    if (bytes > kBuffer - (received_ - forwarded_)) return false;
    received_ += bytes;
    return true;
  }
  // That much has left for the unix socket.
  void forward(u32 bytes) { forwarded_ += bytes; }
  // Whether the guest should be told by a packet of its own. It then still has more than half of the buffer.
  [[nodiscard]] bool should_tell() const { return forwarded_ - told_ >= kBuffer / 4; }
  // For a header that is sent now.
  u32 tell() { return told_ = forwarded_; }

 private:
  u32 guest_buffer_ = 0, guest_forwarded_ = 0, sent_ = 0;
  u32 received_ = 0, forwarded_ = 0, told_ = 0;
};

}  // namespace gpupool::vsock
