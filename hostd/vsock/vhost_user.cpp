#include "hostd/vsock/vhost_user.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "hostd/worker/log.hpp"

namespace gpupool::vsock {
namespace {

using worker::log;
using worker::LogLevel;

// Requests and bits of the protocol.
enum Request : u32 {
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,
  kSetMemory = 5,
  kSetRingSize = 8,
  kSetRingPlace = 9,
  kSetRingNext = 10,
  kGetRingNext = 11,
  kSetRingKick = 12,
  kSetRingCall = 13,
  kSetRingError = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueCount = 17,
  kEnableRing = 18,
  kGetConfig = 24,
  kSetConfig = 25,
};
constexpr u32 kVersion = 1, kVersionMask = 3, kIsReply = 4, kNeedsReply = 8;
constexpr u64 kRingMask = 0xff, kNoDescriptor = 0x100;

constexpr u64 kIndirectDescriptors = 1ull << 28;
constexpr u64 kEventIndex = 1ull << 29;
constexpr u64 kProtocolFeatures = 1ull << 30;
constexpr u64 kVersionOne = 1ull << 32;
constexpr u64 kFeatures = kIndirectDescriptors | kEventIndex | kProtocolFeatures | kVersionOne;

constexpr u64 kManyQueues = 1ull << 0, kReplyAck = 1ull << 3, kConfig = 1ull << 9;
constexpr u64 kOurProtocolFeatures = kManyQueues | kReplyAck | kConfig;

struct [[gnu::packed]] MemoryRegion {
  u64 guest = 0, bytes = 0, user = 0, offset = 0;
};
struct RingNumber {
  u32 ring = 0, number = 0;
};
struct RingAddresses {
  u32 ring = 0, flags = 0;
  u64 descriptors = 0, used = 0, available = 0, log = 0;
};
struct ConfigPart {
  u32 offset = 0, bytes = 0, flags = 0;
};

}  // namespace

VhostUser::VhostUser(Descriptor socket, Device& device, WatchKick watch_kick)
    : socket_(std::move(socket)), device_(device), watch_kick_(std::move(watch_kick)) {}

VhostUser::~VhostUser() {
  for (u32 ring = 0; ring < Device::kRings; ++ring) stop(ring);
  device_.forget_connections("QEMU has gone");
  device_.forget_memory();
}

bool VhostUser::refuse(std::string_view why) {
  log(LogLevel::warning, "QEMU said what cannot be; its connection ends",
      "request=" + std::to_string(header_.request) + ", " + std::string(why));
  return false;
}

Descriptor VhostUser::take_descriptor() {
  if (descriptors_.empty()) return {};
  Descriptor first = std::move(descriptors_.front());
  descriptors_.erase(descriptors_.begin());
  return first;
}

template <typename T>
bool VhostUser::read_payload(T& value) const {
  if (have_payload_ < sizeof value) return false;
  std::memcpy(&value, payload_.data(), sizeof value);
  return true;
}

// Up to `bytes` in all. Descriptors come with a message's first byte.
VhostUser::Got VhostUser::receive(void* to, size_t bytes, size_t& have) {
  alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptors * sizeof(int))];
  while (have < bytes) {
    iovec part{static_cast<std::byte*>(to) + have, bytes - have};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t count = recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Got::nothing;
    if (count <= 0) return Got::end;
    have += static_cast<size_t>(count);
    for (cmsghdr* one = CMSG_FIRSTHDR(&message); one != nullptr; one = CMSG_NXTHDR(&message, one)) {
      if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
      const size_t files = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < files; ++i) {
        int file = -1;
        std::memcpy(&file, CMSG_DATA(one) + i * sizeof file, sizeof file);
        descriptors_.emplace_back(file);
      }
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0 || descriptors_.size() > kMostDescriptors) {
      refuse("too many descriptors");
      return Got::end;
    }
  }
  return Got::something;
}

bool VhostUser::read() {
  for (;;) {
    Got got = receive(&header_, sizeof header_, have_header_);
    if (got != Got::something) return got == Got::nothing;
    if ((header_.flags & kVersionMask) != kVersion) return refuse("another version of the protocol");
    if (header_.bytes > kMostPayload) return refuse("a message that is too long");
    got = receive(payload_.data(), header_.bytes, have_payload_);
    if (got != Got::something) return got == Got::nothing;
    replied_ = false;
    if (!handle()) return false;
    const bool wants = (header_.flags & kNeedsReply) != 0 && (protocol_features_ & kReplyAck) != 0;
    if (wants && !replied_ && !reply_number(0)) return false;
    have_header_ = have_payload_ = 0;
    descriptors_.clear();
  }
}

bool VhostUser::reply(const void* bytes, size_t count) {
  MessageHeader header{header_.request, kVersion | kIsReply, static_cast<u32>(count)};
  iovec parts[] = {{&header, sizeof header}, {const_cast<void*>(bytes), count}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  replied_ = true;
  // A front end that leaves its answers lying has stopped talking.
  if (sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) ==
      static_cast<ssize_t>(sizeof header + count))
    return true;
  return refuse("it takes no answer");
}

bool VhostUser::handle() {
  u64 number = 0;
  const bool has_number = read_payload(number);
  switch (header_.request) {
    case kGetFeatures:
      return reply_number(kFeatures);
    case kSetFeatures:
      if (!has_number || (number & ~kFeatures) != 0) return refuse("features that were not offered");
      features_ = number;
      return true;
    case kGetProtocolFeatures:
      return reply_number(kOurProtocolFeatures);
    case kSetProtocolFeatures:
      if (!has_number || (number & ~kOurProtocolFeatures) != 0)
        return refuse("protocol features that were not offered");
      protocol_features_ = number;
      return true;
    case kGetQueueCount:
      return reply_number(Device::kRings);
    case kSetOwner:
    case kResetOwner:
    case kSetRingError:
      return true;
    case kSetMemory:
      return set_memory();
    case kSetRingKick:
      return set_kick();
    case kSetRingCall:
      if (!has_number || (number & kRingMask) >= Device::kRings) return refuse("no such ring");
      rings_[number & kRingMask].call = take_descriptor();
      return true;
    case kGetConfig:
      return get_config();
    case kSetConfig:
      return refuse("the configuration is not to be written");
    default:
      break;
  }
  RingNumber ring;
  if (!read_payload(ring) || ring.ring >= Device::kRings) return refuse("not known, or no such ring");
  return handle_ring(ring.ring);
}

bool VhostUser::handle_ring(u32 index) {
  Ring& ring = rings_[index];
  RingNumber value;
  if (!read_payload(value)) return refuse("a short message");
  switch (header_.request) {
    case kSetRingSize:
      ring.place.size = value.number;
      return true;
    case kSetRingNext:
      ring.next = static_cast<u16>(value.number);
      return true;
    case kGetRingNext: {
      stop(index);
      ring.started = false;
      ring.kick.reset();
      const RingNumber answer{index, ring.left_at};
      return reply(&answer, sizeof answer);
    }
    case kSetRingPlace: {
      RingAddresses addresses;
      if (!read_payload(addresses)) return refuse("a short message");
      ring.place.descriptors = addresses.descriptors;
      ring.place.available = addresses.available;
      ring.place.used = addresses.used;
      return true;
    }
    case kEnableRing:
      ring.enabled = value.number != 0;
      return update(index);
    default:
      return refuse("not known");
  }
}

bool VhostUser::set_memory() {
  RingNumber count;  // the number of regions, and padding
  if (!read_payload(count)) return refuse("a short message");
  const u32 regions = count.ring;
  if (regions != descriptors_.size() || have_payload_ < sizeof count + size_t{regions} * sizeof(MemoryRegion))
    return refuse("as many regions as there are not");
  GuestMemory memory;
  for (u32 i = 0; i < regions; ++i) {
    MemoryRegion region;
    std::memcpy(&region, payload_.data() + sizeof count + i * sizeof region, sizeof region);
    std::string error;
    const Region where{region.guest, region.bytes, region.user, nullptr};
    if (!memory.map(where, region.offset, descriptors_[i].get(), error)) return refuse(error);
  }
  descriptors_.clear();
  device_.set_memory(std::move(memory));
  return true;
}

bool VhostUser::set_kick() {
  u64 number = 0;
  if (!read_payload(number) || (number & kRingMask) >= Device::kRings) return refuse("no such ring");
  if ((number & kNoDescriptor) != 0 || descriptors_.empty()) return refuse("a ring without a kick");
  const u32 index = static_cast<u32>(number & kRingMask);
  stop(index);
  Ring& ring = rings_[index];
  ring.kick = take_descriptor();
  ring.started = true;
  if ((features_ & kProtocolFeatures) == 0) ring.enabled = true;
  return update(index);
}

bool VhostUser::update(u32 index) {
  Ring& ring = rings_[index];
  const bool should = ring.started && ring.enabled;
  if (should == ring.running) return true;
  if (!should) {
    stop(index);
    return true;
  }
  // The guest's driver starts at 0. Going on where it stood means that this guest has been paused, and at
  // another place that it was served by another process.
  if (ring.next != ring.left_at) device_.forget_connections("the guest's driver has started anew");
  if (fresh_ && ring.next != 0) device_.owe_transport_reset();
  std::string error;
  if (!device_.start(index, ring.place, ring.next, (features_ & kEventIndex) != 0, error))
    return refuse(error);
  ring.running = true;
  if (!watch_kick_(ring.kick.get(), true)) return refuse("a kick that cannot be waited for");
  if (device_.serving()) fresh_ = false;
  return true;
}

void VhostUser::stop(u32 index) {
  Ring& ring = rings_[index];
  if (!ring.running) return;
  ring.running = false;
  watch_kick_(ring.kick.get(), false);
  ring.left_at = ring.next = device_.stop(index);
}

bool VhostUser::get_config() {
  ConfigPart part;
  const u64 cid = device_.cid();
  if (!read_payload(part) || part.bytes > kMostPayload - sizeof part ||
      have_payload_ < sizeof part + part.bytes)
    return refuse("a part of the configuration that is not there");
  // What lies behind the one field reads as zero.
  std::byte answer[kMostPayload] = {};
  std::memcpy(answer, &part, sizeof part);
  if (part.offset < sizeof cid)
    std::memcpy(answer + sizeof part, reinterpret_cast<const std::byte*>(&cid) + part.offset,
                std::min<size_t>(part.bytes, sizeof cid - part.offset));
  return reply(answer, sizeof part + part.bytes);
}

void VhostUser::call(u32 ring) {
  const u64 one = 1;
  if (rings_[ring].call) [[maybe_unused]]
    const ssize_t sent = write(rings_[ring].call.get(), &one, sizeof one);
}

}  // namespace gpupool::vsock
