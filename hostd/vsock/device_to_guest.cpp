// What the guest is sent.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "hostd/vsock/device.hpp"

namespace gpupool::vsock {
namespace {

constexpr size_t kChainsATime = 32;  // Linux offers buffers of 4 KiB: 128 KiB by one system call
constexpr size_t kBytesATime = 256 << 10;
constexpr u32 kTurns = 64;

}  // namespace

void Device::get_in_line(Connection& connection) {
  if (connection.in_line || connection.stage != Stage::open) return;
  if (connection.credit.room() == 0) {
    // Once: asked at every answer, a guest without room would keep us busy.
    if (!connection.credit_asked) notice(connection, Op::credit_request);
    connection.credit_asked = true;
    return;
  }
  connection.in_line = true;
  line_.push_back(connection.serial);
}

Header Device::header_for(const Connection& connection, Op op, u32 bytes) {
  Header header;
  header.source_cid = kHostCid;
  header.destination_cid = cid_;
  header.source_port = connection.ports.host;
  header.destination_port = connection.ports.guest;
  header.bytes = bytes;
  header.type = kStream;
  header.op = static_cast<u16>(op);
  header.buffer = Credit::kBuffer;
  return header;
}

bool Device::give_to_guest() {
  Virtqueue& ring = rings_[kToGuest];
  while (!notices_.empty()) {
    if (!give_notice(notices_.front())) return false;
    notices_.pop_front();
  }
  for (u32 turn = 0; turn < kTurns && !line_.empty(); ++turn) {
    Connection* connection = find(line_.front());
    if (connection == nullptr) {
      line_.pop_front();
      continue;
    }
    if (!give_data(*connection)) return false;
    if (!ring.running()) return false;
  }
  return !line_.empty() || !notices_.empty();
}

bool Device::give_notice(const Notice& notice) {
  Virtqueue& ring = rings_[kToGuest];
  Connection* connection = notice.serial == 0 ? nullptr : find(notice.serial);
  if (notice.serial != 0 && connection == nullptr) return true;  // it has ended since
  if (!ring.pop(chain_) && (!ring.arm() || !ring.pop(chain_))) return false;
  Connection nobody;
  nobody.ports = notice.ports;
  Header header = header_for(connection == nullptr ? nobody : *connection, notice.op, 0);
  header.flags = notice.flags;
  if (connection == nullptr) {
    header.buffer = 0;
  } else {
    header.forwarded = connection->credit.tell();
    if (notice.op == Op::credit_update) connection->update_queued = false;
  }
  if (scatter(chain_.writable, &header, sizeof header) != sizeof header) {
    ring.break_with("a buffer without room for a header");
    return false;
  }
  ring.push(chain_.head, sizeof header);
  return true;
}

// Pops buffers until they have room for that many bytes behind their headers; how many buffers.
size_t Device::gather_room(size_t wanted, size_t& room) {
  Virtqueue& ring = rings_[kToGuest];
  rooms_.resize(kChainsATime);
  parts_.clear();
  room = 0;
  size_t chains = 0;
  while (chains < kChainsATime && room < wanted) {
    Chain& chain = rooms_[chains];
    if (!ring.pop(chain) && (chains != 0 || !ring.arm() || !ring.pop(chain))) break;
    if (chain.writable_bytes <= kHeaderBytes) {
      ring.break_with("a buffer without room for data");
      return 0;
    }
    const size_t before = parts_.size();
    const size_t here = cut(chain.writable, kHeaderBytes, wanted - room, parts_);
    if (parts_.size() > Virtqueue::kMostParts) {
      parts_.resize(before);
      ring.unpop(1);
      break;
    }
    room += here;
    ++chains;
  }
  return chains;
}

// False when the guest has no buffer left.
bool Device::give_data(Connection& connection) {
  Virtqueue& ring = rings_[kToGuest];
  const auto leave_line = [&] {
    connection.in_line = false;
    line_.pop_front();
  };
  if (connection.stage != Stage::open || !connection.readable) {
    leave_line();
    return true;
  }
  const size_t wanted = std::min<size_t>(connection.credit.room(), kBytesATime);
  if (wanted == 0) {
    leave_line();
    get_in_line(connection);  // which asks for credit
    return true;
  }
  size_t room = 0;
  const size_t chains = gather_room(wanted, room);
  if (chains == 0) return false;
  msghdr message{};
  message.msg_iov = parts_.data();
  message.msg_iovlen = parts_.size();
  const ssize_t count = recvmsg(connection.socket.get(), &message, MSG_DONTWAIT);
  if (count > 0) {
    hand_over(connection, static_cast<size_t>(count), chains);
    leave_line();
    // Less than there was room for is all there was, and what comes later is told. Not so at its end, which
    // was told, and behind passed descriptors, where the kernel stops.
    const bool all =
        static_cast<size_t>(count) < room && !connection.ended && (message.msg_flags & MSG_CTRUNC) == 0;
    connection.readable = !all;
    if (!all) get_in_line(connection);  // behind the others
    return true;
  }
  const int error = count < 0 ? errno : 0;
  ring.unpop(static_cast<u16>(chains));
  if (error == EINTR) return true;
  if (error == EFAULT) {
    memory_is_gone();
    return false;
  }
  leave_line();
  connection.readable = false;
  if (error == EAGAIN || error == EWOULDBLOCK) return true;
  if (error != 0)
    drop(connection, true);
  else
    host_ended(connection, connection.hung_up ? kNeither : kNoSend);
  return true;
}

void Device::hand_over(Connection& connection, size_t bytes, size_t chains) {
  Virtqueue& ring = rings_[kToGuest];
  connection.credit.send(static_cast<u32>(bytes));
  size_t used = 0;
  for (; bytes != 0; ++used) {
    const Chain& chain = rooms_[used];
    const size_t here = std::min<size_t>(bytes, chain.writable_bytes - kHeaderBytes);
    Header header = header_for(connection, Op::data, static_cast<u32>(here));
    header.forwarded = connection.credit.tell();
    scatter(chain.writable, &header, sizeof header);
    ring.push(chain.head, static_cast<u32>(kHeaderBytes + here));
    bytes -= here;
  }
  ring.unpop(static_cast<u16>(chains - used));
}

// The host will not send, or not receive, any more; the guest is told once of each.
void Device::host_ended(Connection& connection, u32 flags) {
  const u32 both = connection.host_ended | flags;
  if (both == connection.host_ended) return;
  connection.host_ended = both;
  notice(connection, Op::shutdown, both);
  if (both != kNeither) return;
  connection.socket.reset();
  connection.backlog.clear();
  connection.readable = false;
  connection.stage = Stage::closing;
}

void Device::give_event() {
  Virtqueue& ring = rings_[kEvents];
  if (!ring.running() || !ring.pop(chain_)) return;
  if (scatter(chain_.writable, &kTransportReset, sizeof kTransportReset) != sizeof kTransportReset)
    return ring.break_with("a buffer without room for an event");
  ring.push(chain_.head, sizeof kTransportReset);
  owes_reset_ = false;
}

}  // namespace gpupool::vsock
