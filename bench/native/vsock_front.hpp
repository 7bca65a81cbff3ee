// A guest of gpupool-vsock without a VM: QEMU's messages, and one connection over the rings. It waits for
// calls and kicks by eventfd as a guest's driver does, and copies every byte once into or out of its packets.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#include "bench/native/vsock_driver.hpp"

namespace gpupool::bench {

[[noreturn]] inline void give_up(const char* what) {
  std::fprintf(stderr, "gpupool-bench-vsock-guest: %s: %m\n", what);
  std::exit(1);
}

inline int connect_to(const std::string& path) {
  const int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", path.c_str());
  if (made < 0 || connect(made, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    give_up(path.c_str());
  return made;
}

class VsockFront {
 public:
  static constexpr u32 kEntries = 128;             // QEMU's
  static constexpr u32 kRoom = 4096, kSlots = 64;  // Linux 6.1's buffers: 4 KiB, two descriptors each
  static constexpr u32 kPacketBytes = 64 << 10;    // VIRTIO_VSOCK_MAX_PKT_BUF_SIZE
  static constexpr u32 kPackets = 4, kBuffer = 256 << 10;

  VsockFront(const std::string& folder, u64 cid) : cid_(cid), vhost_(connect_to(folder + "/vhost")) {
    file_ = memfd_create("guest", MFD_CLOEXEC);
    if (file_ < 0 || ftruncate(file_, kBytes) != 0) give_up("memfd");
    void* at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, 0);
    if (at == MAP_FAILED) give_up("mmap");
    driver_ = new VsockDriver(static_cast<std::byte*>(at), kEntries);
    driver_->boot();
    for (u32 slot = 0; slot < kSlots; ++slot) offer(static_cast<u16>(slot));
    start();
  }

  void open(u32 port) {
    port_ = port;
    ++guest_port_;
    sent_ = forwarded_ = told_ = 0;
    packet(vsock::Op::request, nullptr, 0);
    while (!open_) wait();
  }
  void shut() {
    packet(vsock::Op::shutdown, nullptr, 0, vsock::kNeither);
    while (open_) wait();
  }

  void send(const char* data, size_t count) {
    while (count != 0) {
      const size_t here = std::min<size_t>({count, kPacketBytes, peer_buffer_ - (sent_ - peer_forwarded_)});
      if (here == 0) {
        wait();
        continue;
      }
      packet(vsock::Op::data, data, static_cast<u32>(here));
      sent_ += static_cast<u32>(here);
      data += here;
      count -= here;
    }
  }
  void receive(char* to, size_t count) {
    while (count != 0) {
      const size_t here = std::min(count, inbox_.size() - taken_);
      if (here == 0) {
        inbox_.clear();
        taken_ = 0;
        wait();
        continue;
      }
      std::memcpy(to, inbox_.data() + taken_, here);
      taken_ += here;
      to += here;
      count -= here;
      forwarded_ += static_cast<u32>(here);
      // As Linux: when less than a packet's room is left by what the peer knows.
      if (kBuffer - (forwarded_ - told_) < kPacketBytes) packet(vsock::Op::credit_update, nullptr, 0);
    }
  }

 private:
  static constexpr u64 kBytes = 4 << 20, kPacketPlace = 1 << 20;

  void message(u32 request, std::initializer_list<u64> words, std::initializer_list<int> files) {
    u64 payload[8];
    size_t size = 0;
    for (const u64 word : words) payload[size++] = word;
    u32 header[3] = {request, 1, static_cast<u32>(size * 8)};
    iovec parts[] = {{header, sizeof header}, {payload, size * 8}};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    if (files.size() != 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(rights), files.begin(), sizeof(int));
    }
    if (sendmsg(vhost_, &message, MSG_NOSIGNAL) < 0) give_up("vhost-user");
  }
  static u64 pair(u32 first, u32 second) { return u64{second} << 32 | first; }

  void start() {
    message(2, {1ull << 32 | 1ull << 30 | 1ull << 29 | 1ull << 28}, {});
    message(5, {1, VsockDriver::kGuestBase, kBytes, VsockDriver::kUserBase, 0}, {file_});
    for (u32 ring = 0; ring < 3; ++ring) {
      kick_[ring] = eventfd(0, EFD_CLOEXEC);
      call_[ring] = eventfd(0, EFD_CLOEXEC);
      const vsock::RingPlace place = driver_->place(ring);
      message(8, {pair(ring, kEntries)}, {});
      message(10, {pair(ring, 0)}, {});
      message(9, {pair(ring, 0), place.descriptors, place.used, place.available, 0}, {});
      message(13, {ring}, {call_[ring]});
      message(12, {ring}, {kick_[ring]});
      message(18, {pair(ring, 1)}, {});
    }
  }

  void offer(u16 slot) {
    const u64 place = VsockDriver::guest(VsockDriver::kDataOffset + slot * (kRoom + 64));
    const auto head = static_cast<u16>(2 * slot);
    driver_->describe(0, head, place, vsock::kHeaderBytes, VsockDriver::kWrite | VsockDriver::kNext,
                      static_cast<u16>(head + 1));
    driver_->describe(0, head + 1u, place + 64, kRoom - 64, VsockDriver::kWrite, 0);
    driver_->offer(0, head);
  }
  // Only if the device wishes it: vring_need_event() of the standard, for one new buffer or many.
  void kick(u32 ring, u16 before) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const u16 now = driver_->offered(ring);
    const u16 wished = driver_->wished_kick(ring);
    if (static_cast<u16>(now - wished - 1) < static_cast<u16>(now - before)) eventfd_write(kick_[ring], 1);
  }

  void packet(vsock::Op op, const char* data, u32 bytes, u32 flags = 0) {
    while (static_cast<u16>(driver_->offered(1) - driver_->used_index(1)) >= kPackets) {
      driver_->wish_call(1, driver_->used_index(1));
      std::atomic_thread_fence(std::memory_order_seq_cst);
      if (static_cast<u16>(driver_->offered(1) - driver_->used_index(1)) < kPackets) break;
      eventfd_t count = 0;
      eventfd_read(call_[1], &count);
    }
    const u32 slot = driver_->offered(1) % kPackets;
    const u64 place = kPacketPlace + u64{slot} * (2 * kPacketBytes);
    const vsock::Header header{cid_,           vsock::kHostCid,      guest_port_, port_,   bytes,
                               vsock::kStream, static_cast<u16>(op), flags,       kBuffer, forwarded_};
    told_ = forwarded_;
    std::memcpy(driver_->at(place), &header, sizeof header);
    if (bytes != 0) std::memcpy(driver_->at(place + 64), data, bytes);
    const auto head = static_cast<u16>(2 * slot);
    driver_->describe(1, head, VsockDriver::guest(place), sizeof header, bytes != 0 ? VsockDriver::kNext : 0,
                      static_cast<u16>(head + 1));
    driver_->describe(1, head + 1u, VsockDriver::guest(place + 64), bytes, 0, 0);
    const u16 before = driver_->offered(1);
    driver_->offer(1, head);
    kick(1, before);
  }

  bool look() {
    const u16 before = driver_->offered(0);
    bool any = false;
    for (VsockDriver::Used used; driver_->take(0, used); any = true) {
      const u64 place = VsockDriver::kDataOffset + used.head / 2 * (kRoom + 64);
      vsock::Header header;
      std::memcpy(&header, driver_->at(place), sizeof header);
      if (header.destination_port == guest_port_) {
        peer_buffer_ = header.buffer != 0 ? header.buffer : peer_buffer_;
        peer_forwarded_ = header.forwarded;
        const auto op = static_cast<vsock::Op>(header.op);
        if (op == vsock::Op::response) open_ = true;
        if (op == vsock::Op::reset) open_ = false;
        const char* data = reinterpret_cast<const char*>(driver_->at(place + 64));
        if (op == vsock::Op::data) inbox_.insert(inbox_.end(), data, data + header.bytes);
      }
      offer(static_cast<u16>(used.head / 2));
    }
    if (any) kick(0, before);
    return any;
  }
  void wait() {
    while (!look()) {
      driver_->wish_call(0, driver_->seen(0));
      std::atomic_thread_fence(std::memory_order_seq_cst);
      if (driver_->used_index(0) != driver_->seen(0)) continue;
      eventfd_t count = 0;
      eventfd_read(call_[0], &count);
    }
  }

  const u64 cid_;
  const int vhost_;
  int file_ = -1, kick_[3] = {}, call_[3] = {};
  VsockDriver* driver_ = nullptr;
  u32 port_ = 0, guest_port_ = 1024;
  u32 peer_buffer_ = 0, peer_forwarded_ = 0, sent_ = 0, forwarded_ = 0, told_ = 0;
  bool open_ = false;
  std::vector<char> inbox_;
  size_t taken_ = 0;
};

}  // namespace gpupool::bench
