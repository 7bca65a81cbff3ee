// Where the host comes in: the unix socket `vsock`, on which one says "CONNECT port\n" and then talks to that
// port of the guest's (the hybrid vsock of Firecracker and Cloud Hypervisor).
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <string_view>
#include <unordered_map>

#include "hostd/vsock/descriptor.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

class HostDoor {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMostWaiting = 64;
  static constexpr std::chrono::seconds kPatience{5};
  static constexpr size_t kLongestLine = 32;

  using Watch = std::function<bool(u64 visitor, int socket)>;
  using Offer = std::function<bool(Descriptor socket, u32 port)>;

  HostDoor(Watch watch, Offer offer) : watch_(std::move(watch)), offer_(std::move(offer)) {}

  // Takes one that came.
  void enter(Descriptor socket);
  // That one has said something, or has gone.
  void ready(u64 visitor);
  [[nodiscard]] Clock::time_point deadline() const;
  void expire(Clock::time_point now);

  // The port in a line without its end; false if it is none.
  static bool parse(std::string_view line, u32& port);

 private:
  struct Waiting {
    u64 visitor = 0;
    Clock::time_point until;
  };

  Watch watch_;
  Offer offer_;
  std::unordered_map<u64, Descriptor> visitors_;
  std::deque<Waiting> order_;
  u64 next_ = 1;
};

}  // namespace gpupool::vsock
