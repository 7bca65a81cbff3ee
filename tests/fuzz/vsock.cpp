// Target: gpupool-vsock as a hostile guest, or a hostile QEMU, sees it. The input's first byte says which;
// the rest is a sequence of steps. A guest writes into its memory, sends packets that are right but for what
// the input says, offers buffers; the host's ends of its connections talk, stall and go. What must hold:
// nothing outside the guest's memory is touched (the sanitizers see to it), and what is held for it stays
// bounded.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "bench/native/vsock_driver.hpp"
#include "hostd/vsock/device.hpp"
#include "hostd/vsock/host_door.hpp"
#include "hostd/vsock/vhost_user.hpp"

namespace gpupool::worker {
void drain_standard_error() {}  // what the log waits for in a worker
}  // namespace gpupool::worker

using namespace gpupool;
using namespace gpupool::vsock;

namespace {

using Driver = bench::VsockDriver;
constexpr u64 kBytes = 128 << 10, kCid = 42;
constexpr u32 kEntries = 16, kSteps = 64;

class Input {
 public:
  Input(const u8* data, size_t size) : at_(data), end_(data + size) {}
  [[nodiscard]] bool empty() const { return at_ == end_; }
  template <typename T>
  T take() {
    T value{};
    const size_t count = std::min<size_t>(sizeof value, static_cast<size_t>(end_ - at_));
    std::memcpy(&value, at_, count);
    at_ += count;
    return value;
  }
  size_t take(std::byte* to, size_t count) {
    count = std::min<size_t>(count, static_cast<size_t>(end_ - at_));
    std::memcpy(to, at_, count);
    at_ += count;
    return count;
  }

 private:
  const u8* at_;
  const u8* end_;
};

// Where the device's sockets end, and when it may be told of them.
class Host : public Surroundings {
 public:
  bool connect_port(u64 serial, u32 port) override {
    if (port % 4 == 3 || asked.size() >= 8) return false;
    asked.push_back(serial);
    return true;
  }
  bool watch(u64 serial, int socket) override {
    watched[serial] = socket;
    return true;
  }
  void watch_room(u64, int, bool) override {}
  void call(u32) override {}

  Descriptor make() {
    int ends[2];
    if (ours.size() >= 16 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0) return {};
    const int small = 4096;  // soon full
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    ours.emplace_back(ends[0]);
    return Descriptor(ends[1]);
  }
  void act(u8 which, u8 what, u16 count) {
    static char bytes[1 << 16];
    if (ours.empty()) return;
    Descriptor& one = ours[which % ours.size()];
    if (what % 5 == 0) send(one.get(), bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (what % 5 == 1) recv(one.get(), bytes, count, MSG_DONTWAIT);
    if (what % 5 == 2) shutdown(one.get(), SHUT_WR);
    if (what % 5 == 3) shutdown(one.get(), SHUT_RD);
    if (what % 5 == 4) ours.erase(ours.begin() + which % static_cast<int>(ours.size()));
  }
  void tell(Device& device) {
    for (auto it = watched.begin(); it != watched.end();) {
      pollfd one{it->second, POLLIN | POLLOUT | POLLRDHUP, 0};
      poll(&one, 1, 0);
      const u64 serial = it->first;
      // Numbers are given again: what is told of another's socket is nothing worse than too much.
      it = (one.revents & POLLNVAL) != 0 ? watched.erase(it) : std::next(it);
      device.ready(serial, {(one.revents & POLLIN) != 0, (one.revents & POLLOUT) != 0,
                            (one.revents & POLLRDHUP) != 0, (one.revents & POLLHUP) != 0});
    }
  }

  std::vector<u64> asked;
  std::map<u64, int> watched;
  std::vector<Descriptor> ours;
};

class Guest {
 public:
  Guest() : device_(kCid, host_) {
    // Two allocations of just the size: a byte beyond either is seen.
    for (auto& half : halves_) half.reset(new (std::align_val_t(64)) std::byte[kBytes / 2]);
    std::memset(halves_[1].get(), 0, kBytes / 2);
    driver_ = std::make_unique<Driver>(halves_[0].get(), kEntries);
    place_memory();
    start(0, true);
  }

  void play(Input input) {
    for (u32 step = 0; step < kSteps && !input.empty(); ++step) {
      one(input);
      if (device_.connections() > Device::kMostConnections) std::abort();
    }
    for (u32 i = 0; device_.turn(); ++i)
      if (i > 10000) std::abort();  // it turns for ever
  }

 private:
  struct Free {
    void operator()(std::byte* at) const { ::operator delete[](at, std::align_val_t(64)); }
  };

  void place_memory() {
    GuestMemory memory;
    memory.add({Driver::kGuestBase, kBytes / 2, Driver::kUserBase, halves_[0].get()});
    memory.add(
        {Driver::kGuestBase + kBytes / 2, kBytes / 2, Driver::kUserBase + kBytes / 2, halves_[1].get()});
    device_.set_memory(std::move(memory));
  }
  void start(u16 next, bool event_index) {
    std::string error;
    driver_->boot();
    for (u32 ring = 0; ring < 3; ++ring) device_.start(ring, driver_->place(ring), next, event_index, error);
  }
  [[nodiscard]] std::byte* at(u64 offset) const {
    return offset < kBytes / 2 ? halves_[0].get() + offset : halves_[1].get() + (offset - kBytes / 2);
  }
  void write(u64 offset, const void* bytes, size_t count) {
    for (size_t i = 0; i < count && offset + i < kBytes; ++i)
      *at(offset + i) = static_cast<const std::byte*>(bytes)[i];
  }

  void one(Input& input) {
    switch (input.take<u8>() % 12) {
      case 0:
        return scribble(input);
      case 1:
      case 2:
      case 3:
        return send_packet(input);
      case 4:
      case 5:
        return offer_room(input);
      case 6:
        device_.turn();
        return host_.tell(device_);
      case 7: {
        const u8 which = input.take<u8>();
        if (host_.asked.empty()) return;
        const u64 serial = host_.asked.front();
        host_.asked.erase(host_.asked.begin());
        return device_.connected(serial, which % 4 == 0 ? Descriptor() : host_.make());
      }
      case 8: {
        const u8 which = input.take<u8>();
        const u8 what = input.take<u8>();
        host_.act(which, what, input.take<u16>());
        return host_.tell(device_);
      }
      case 9:
        if (Descriptor made = host_.make(); made) device_.offer(std::move(made), input.take<u8>() % 4);
        return;
      case 10:
        return change(input);
      default: {
        const u32 ring = input.take<u8>() % 3;
        return driver_->set_index(ring, input.take<u16>());
      }
    }
  }

  void scribble(Input& input) {
    // In the rings' first entries, mostly.
    static constexpr u64 kPlaces[] = {0, 0x1000, 0x2000, 0x1000 + 4 + 2 * kEntries};
    const u8 where = input.take<u8>();
    const u64 offset = u64{where % 3u} * Driver::kRingBytes + kPlaces[where / 3 % 4] + input.take<u8>();
    std::byte bytes[16];
    write(offset, bytes, input.take(bytes, 1 + where % 16));
  }

  void send_packet(Input& input) {
    Header header;
    header.source_cid = kCid;
    header.destination_cid = kHostCid;
    header.type = kStream;
    const u8 ports = input.take<u8>();
    header.source_port = ports % 4;
    header.destination_port = ports / 4 % 4;
    if (ports >= 128) header.destination_port |= 0x4000'0000;  // where the host's callers are
    header.op = input.take<u8>() % 9;
    header.flags = input.take<u8>();
    header.bytes = input.take<u16>();
    header.buffer = u32{input.take<u8>()} << 10;
    header.forwarded = input.take<u16>();
    const u8 lie = input.take<u8>();
    const u64 place = Driver::kDataOffset + u64{input.take<u8>()} * 64;
    u32 real = static_cast<u32>(kHeaderBytes) + header.bytes;
    if (lie % 16 == 1) header.source_cid ^= lie;
    if (lie % 16 == 2) header.type = lie;
    if (lie % 16 == 3) header.bytes = 0x8000'0000u | lie;
    if (lie % 16 == 4) real = lie;
    write(place, &header, sizeof header);
    const u16 head = static_cast<u16>(driver_->offered(1) % (kEntries / 4) * 4);
    const u32 first = std::min<u32>(real, lie % 3 == 0 ? real : 1 + lie / 2);
    const bool indirect = lie >= 192;
    const u64 table = kBytes - 256;
    const auto entry = [&](u16 index, u64 from, u32 bytes, u16 flags, u16 next) {
      u8 raw[16];
      std::memcpy(raw, &from, 8);
      std::memcpy(raw + 8, &bytes, 4);
      std::memcpy(raw + 12, &flags, 2);
      std::memcpy(raw + 14, &next, 2);
      write(indirect ? table + index * 16u : u64{Driver::kRingBytes} + (head + index) * 16u, raw, sizeof raw);
    };
    const auto next = static_cast<u16>(indirect ? 1 : head + 1);
    entry(0, Driver::guest(place), first, first < real ? Driver::kNext : 0, next);
    entry(1, Driver::guest(place + first), real - first, 0, 0);
    if (indirect) driver_->describe(1, head, Driver::guest(table), 32, Driver::kIndirect, 0);
    driver_->offer(1, head);
  }

  void offer_room(Input& input) {
    const u8 shape = input.take<u8>();
    const u32 ring = shape % 16 == 0 ? 2 : 0;
    const u16 head = static_cast<u16>(driver_->offered(ring) % (kEntries / 2) * 2);
    const u64 place = Driver::kDataOffset + u64{input.take<u8>()} * 256;
    const u32 bytes = shape % 8 == 0 ? shape : 44 + u32{shape} * 32;
    driver_->describe(ring, head, Driver::guest(place), bytes, shape % 2 == 0 ? 2 : 3,
                      static_cast<u16>(head + 1));
    driver_->describe(ring, head + 1u, Driver::guest(place + bytes), shape, 2, 0);
    driver_->offer(ring, head);
  }

  void change(Input& input) {
    const u8 what = input.take<u8>();
    if (what % 4 == 0) {
      for (u32 ring = 0; ring < 3; ++ring) device_.stop(ring);
      if (what % 8 == 0) device_.forget_connections("boot");
      start(what % 16 == 0 ? input.take<u16>() : 0, what >= 128);
    } else if (what % 4 == 1) {
      device_.expire(device_.deadline());
    } else if (what % 4 == 2) {
      device_.owe_transport_reset();
    } else if (what % 32 == 3) {
      device_.set_memory(GuestMemory());
      place_memory();
    }
  }

  std::unique_ptr<std::byte, Free> halves_[2];
  std::unique_ptr<Driver> driver_;
  Host host_;
  Device device_;
};

// QEMU's side: messages, with a file that can be mapped or an eventfd where the input says so.
class Qemu {
 public:
  Qemu() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0) std::abort();
    ours_.reset(ends[0]);
    session_ = std::make_unique<VhostUser>(Descriptor(ends[1]), device_, [](int, bool) { return true; });
  }

  void play(Input input) {
    for (u32 step = 0; step < kSteps && !input.empty(); ++step) {
      if (!say(input) || !session_->read()) return;
      device_.turn();
      host_.tell(device_);
      char answers[4096];
      while (recv(ours_.get(), answers, sizeof answers, MSG_DONTWAIT) > 0) continue;
    }
  }

 private:
  static constexpr u64 kFileBytes = 1 << 20;
  static constexpr u64 kFeatures = 1ull << 32 | 1ull << 30 | 1ull << 29 | 1ull << 28;

  static int file() {
    static const int made = memfd_create("guest", MFD_CLOEXEC);
    if (made < 0 || ftruncate(made, kFileBytes) != 0) std::abort();
    return made;
  }

  // A message that means something, of the input's numbers.
  static size_t sensible(Input& input, u32 request, u64 (&words)[8]) {
    const u64 ring = input.take<u8>() % 4;
    if (request == 2) words[0] = input.take<u64>() & kFeatures;
    if (request == 16) words[0] = input.take<u64>() & 0x209;
    if (request == 8) words[0] = ring | u64{16} << 32;
    if (request == 10 || request == 18) words[0] = ring | u64{input.take<u8>()} << 32;
    if (request == 11 || request == 12 || request == 13) words[0] = ring;
    if (request == 9) {
      words[0] = ring;
      for (int i = 1; i < 4; ++i) words[i] = Driver::kUserBase + u64{input.take<u16>()} * 16;
    }
    if (request == 5) {
      words[0] = 1;
      words[1] = Driver::kGuestBase;
      words[2] = u64{input.take<u16>()} << 5;
      words[3] = Driver::kUserBase;
      words[4] = u64{input.take<u8>()} << 6;
    }
    if (request == 24) words[0] = input.take<u8>() | u64{input.take<u8>() % 32u} << 32;
    return request == 5 || request == 9 ? 40 : request == 24 ? 44 : 8;
  }

  bool say(Input& input) {
    const u8 shape = input.take<u8>();
    u32 header[3] = {input.take<u8>() % 27u, shape % 64 == 15 ? 0u : 1u | (shape & 8), 0};
    u64 words[8] = {};
    if (header[0] == 26) {  // no message: what the guest has in its memory
      const auto where = static_cast<off_t>(input.take<u16>() * 16);
      std::byte bytes[16];
      return pwrite(file(), bytes, input.take(bytes, sizeof bytes), where) >= 0;
    }
    const size_t size = (shape & 4) != 0 ? sensible(input, header[0], words)
                                         : input.take(reinterpret_cast<std::byte*>(words), shape % 64);
    header[2] = shape >= 248 ? 0x1000'0000u : static_cast<u32>(size);
    iovec parts[] = {{header, sizeof header}, {words, size}};
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    if (shape % 3 != 0) {
      static const int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
      const int files[2] = {header[0] == 5 || shape % 3 == 1 ? file() : event, file()};
      message.msg_control = control;
      message.msg_controllen = shape >= 192 ? CMSG_SPACE(2 * sizeof(int)) : CMSG_SPACE(sizeof(int));
      cmsghdr* rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = shape >= 192 ? CMSG_LEN(2 * sizeof(int)) : CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(rights), files, rights->cmsg_len - CMSG_LEN(0));
    }
    return sendmsg(ours_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
  }

  Descriptor ours_;
  Host host_;
  Device device_{kCid, host_};
  std::unique_ptr<VhostUser> session_;
};

// Lines of callers, in whatever pieces they come.
void play_callers(Input input) {
  Host host;
  u32 offered = 0;
  std::map<u64, int> visitors;
  HostDoor door([&](u64 visitor, int socket) { return visitors.emplace(visitor, socket).second; },
                [&](Descriptor, u32) { return ++offered % 2 == 0; });
  for (u32 step = 0; step < kSteps && !input.empty(); ++step) {
    const u8 what = input.take<u8>();
    if (what % 4 == 0) {
      if (Descriptor made = host.make(); made) door.enter(std::move(made));
    } else if (what % 4 == 1 && !host.ours.empty()) {
      std::byte text[40] = {};
      std::memcpy(text, "CONNECT ", 8);
      const size_t size = 8 + input.take(text + 8, what / 4 % 32);
      const size_t skip = what >= 128 ? 8 : 0;
      send(host.ours[what % host.ours.size()].get(), text + skip, size - skip, MSG_DONTWAIT | MSG_NOSIGNAL);
    } else if (what % 4 == 2) {
      door.expire(door.deadline());
    } else {
      host.act(what, input.take<u8>(), 10);
    }
    for (const auto& [visitor, socket] : visitors) door.ready(visitor);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  if (size == 0) return 0;
  const Input input(data + 1, size - 1);
  if (data[0] % 8 == 7)
    play_callers(input);
  else if (data[0] % 4 == 2)
    Qemu().play(input);
  else
    Guest().play(input);
  return 0;
}
