// One stream between a port of the guest's and a unix socket.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "hostd/vsock/credit.hpp"
#include "hostd/vsock/descriptor.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

struct Ports {
  u32 guest = 0;
  u32 host = 0;
  bool operator==(const Ports&) const = default;
};

struct PortsHash {
  size_t operator()(const Ports& ports) const noexcept {
    return std::hash<u64>{}((u64{ports.host} << 32 | ports.guest) * 0x9E37'79B9'7F4A'7C15u);
  }
};

enum class Stage {
  asked,    // the guest has: the unix socket is being connected
  offered,  // to the guest, which has not answered
  open,
  closing,    // both sides have ended; the guest has not said that it forgets it
  lingering,  // the guest has forgotten it; the unix socket takes the rest
};

// Bytes of the guest's that the unix socket has not taken. Never more than Credit::kBuffer.
class Backlog {
 public:
  void append(const std::byte* bytes, size_t count) { bytes_.insert(bytes_.end(), bytes, bytes + count); }
  void take(size_t count) {
    begin_ += count;
    if (begin_ == bytes_.size()) clear();
  }
  void clear() {
    bytes_ = {};  // and its memory: most connections never need any
    begin_ = 0;
  }
  [[nodiscard]] bool empty() const { return begin_ == bytes_.size(); }
  [[nodiscard]] const std::byte* data() const { return bytes_.data() + begin_; }
  [[nodiscard]] size_t size() const { return bytes_.size() - begin_; }

 private:
  std::vector<std::byte> bytes_;
  size_t begin_ = 0;
};

struct Connection {
  u64 serial = 0;
  Ports ports;
  Stage stage = Stage::asked;
  Descriptor socket;
  Credit credit;
  Backlog backlog;
  u32 guest_ended = 0;    // kNoReceive, kNoSend: what the guest has said
  u32 host_ended = 0;     // and what it was told
  bool readable = false;  // the unix socket has, or may have, bytes for the guest
  bool ended = false;     // its other end sends no more than what is there
  bool hung_up = false;   // and does not receive
  bool in_line = false;   // in the device's line of connections that are read from
  bool update_queued = false;
  bool credit_asked = false;
  std::chrono::steady_clock::time_point deadline;  // of an answer to an offer
};

}  // namespace gpupool::vsock
