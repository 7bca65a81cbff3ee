// The back end of one vhost-user connection (QEMU's docs/interop/vhost-user.rst): what QEMU says about the
// guest's memory and rings, told to the Device.
//
// QEMU belongs to whoever runs the VM, and is trusted no more than the guest: sizes, offsets and the number
// of descriptors are checked, and what cannot be ends the connection with a logged reason.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "hostd/vsock/descriptor.hpp"
#include "hostd/vsock/device.hpp"

namespace gpupool::vsock {

class VhostUser {
 public:
  // Begin, or end, to call Device::turn() whenever that descriptor is written to. False if it cannot be
  // watched.
  using WatchKick = std::function<bool(int kick, bool begin)>;

  VhostUser(Descriptor socket, Device& device, WatchKick watch_kick);
  VhostUser(const VhostUser&) = delete;
  VhostUser& operator=(const VhostUser&) = delete;
  ~VhostUser();

  [[nodiscard]] int socket() const { return socket_.get(); }
  // Answers what has come. False when the connection has ended, or has to.
  bool read();
  void call(u32 ring);

 private:
  static constexpr size_t kMostDescriptors = 8;
  static constexpr size_t kMostPayload = 512;

  struct [[gnu::packed]] MessageHeader {
    u32 request = 0;
    u32 flags = 0;
    u32 bytes = 0;
  };
  struct Ring {
    RingPlace place;
    u16 next = 0;
    u16 left_at = 0;  // where it stood when QEMU stopped it last
    Descriptor kick, call;
    bool enabled = false;
    bool started = false;  // kicked, in the words of the protocol
    bool running = false;
  };

  enum class Got { something, nothing, end };
  Got receive(void* to, size_t bytes, size_t& have);
  bool handle();
  bool handle_ring(u32 ring);
  bool set_memory();
  bool set_kick();
  bool get_config();
  bool reply(const void* bytes, size_t count);
  bool reply_number(u64 number) { return reply(&number, sizeof number); }
  bool update(u32 index);
  void stop(u32 index);
  bool refuse(std::string_view why);
  [[nodiscard]] Descriptor take_descriptor();
  template <typename T>
  [[nodiscard]] bool read_payload(T& value) const;

  Descriptor socket_;
  Device& device_;
  WatchKick watch_kick_;
  std::array<Ring, Device::kRings> rings_;
  u64 features_ = 0;
  u64 protocol_features_ = 0;
  bool fresh_ = true;  // no ring has run since QEMU came

  MessageHeader header_;
  std::array<std::byte, kMostPayload> payload_{};
  size_t have_header_ = 0, have_payload_ = 0;
  std::vector<Descriptor> descriptors_;
  bool replied_ = false;
};

}  // namespace gpupool::vsock
