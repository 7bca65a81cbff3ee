// What the guest sends.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "hostd/vsock/device.hpp"
#include "hostd/worker/log.hpp"

namespace gpupool::vsock {
namespace {

using worker::log;
using worker::LogLevel;

constexpr u32 kPacketsATurn = 256;  // then the others have their turn

ssize_t send_parts(int socket, std::span<const iovec> parts) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool is_full(int error) {
  return error == EAGAIN || error == EWOULDBLOCK;
}

}  // namespace

bool Device::take_from_guest() {
  Virtqueue& ring = rings_[kFromGuest];
  for (u32 count = 0; count < kPacketsATurn; ++count) {
    if (notices_.size() >= kMostNotices) return true;
    if (!ring.pop(chain_)) {
      if (!ring.arm() || !ring.running() || !ring.pop(chain_)) return false;
    }
    take(chain_);
    ring.push(chain_.head, 0);
  }
  return true;
}

void Device::take(const Chain& chain) {
  Header header;
  if (gather(chain.readable, &header, sizeof header) != sizeof header)
    return rings_[kFromGuest].break_with("a packet without a header");
  parts_.clear();
  if (cut(chain.readable, sizeof header, header.bytes, parts_) != header.bytes)
    return rings_[kFromGuest].break_with("a packet shorter than it says");
  take_packet(header, parts_);
}

void Device::take_packet(const Header& header, std::span<const iovec> parts) {
  const Ports ports{header.source_port, header.destination_port};
  const auto op = static_cast<Op>(header.op);
  if (header.source_cid != cid_ || header.destination_cid != kHostCid) return;  // nobody to answer to
  if (header.type != kStream) {
    if (op != Op::reset) refuse(ports);
    return;
  }
  Connection* connection = find(ports);
  if (op == Op::request) {
    if (connection != nullptr) return drop(*connection, true);
    return open_for_guest(header, ports);
  }
  if (connection == nullptr) {
    if (op != Op::reset) refuse(ports);
    return;
  }
  connection->credit.learn(header.buffer, header.forwarded);
  if (connection->credit.room() != 0) connection->credit_asked = false;
  if (connection->readable) get_in_line(*connection);
  if (op == Op::reset) return drop(*connection, false);
  if (op == Op::response) return take_answer(*connection);
  if (connection->stage == Stage::asked || connection->stage == Stage::offered)
    return drop(*connection, true);
  if (op == Op::data) return take_data(*connection, header, parts);
  if (op == Op::shutdown) return take_shutdown(*connection, header.flags);
  if (op == Op::credit_update) return;
  if (op != Op::credit_request) return drop(*connection, true);
  if (!connection->update_queued) notice(*connection, Op::credit_update);
  connection->update_queued = true;
}

void Device::open_for_guest(const Header& header, Ports ports) {
  if (connections_.size() >= kMostConnections) {
    log(LogLevel::warning, "too many connections of the guest's");
    return refuse(ports);
  }
  Connection& connection = make(ports, Stage::asked);
  connection.credit.learn(header.buffer, header.forwarded);
  if (!around_.connect_port(connection.serial, ports.host)) drop(connection, true);
}

void Device::take_answer(Connection& connection) {
  if (connection.stage != Stage::offered) return drop(connection, true);
  const std::string line = "OK " + std::to_string(connection.ports.host) + "\n";
  const ssize_t sent = send(connection.socket.get(), line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent != static_cast<ssize_t>(line.size())) return drop(connection, true);
  connection.stage = Stage::open;
  connection.readable = true;  // the host may have said something already
  get_in_line(connection);
}

void Device::take_data(Connection& connection, const Header& header, std::span<const iovec> parts) {
  if ((connection.guest_ended & kNoSend) != 0) return drop(connection, true);
  if (!connection.credit.receive(header.bytes)) {
    log(LogLevel::info, "the guest sends beyond its credit", "port=" + std::to_string(connection.ports.host));
    return drop(connection, true);
  }
  size_t sent = 0;
  if ((connection.host_ended & kNoReceive) != 0) {
    sent = header.bytes;  // nobody takes it, which the guest was told
  } else if (connection.backlog.empty() && !parts.empty()) {
    const ssize_t count = send_parts(connection.socket.get(), parts);
    if (count < 0 && errno == EFAULT) return memory_is_gone();
    if (count < 0 && !is_full(errno)) {
      host_left(connection);
      return;
    }
    sent = count < 0 ? 0 : static_cast<size_t>(count);
  }
  connection.credit.forward(static_cast<u32>(sent));
  keep(connection, parts, sent);
  if (connection.credit.should_tell() && !connection.update_queued) {
    notice(connection, Op::credit_update);
    connection.update_queued = true;
  }
}

// What the unix socket did not take of a packet.
void Device::keep(Connection& connection, std::span<const iovec> parts, size_t sent) {
  const bool was_empty = connection.backlog.empty();
  for (const iovec& part : parts) {
    const size_t skipped = std::min(sent, part.iov_len);
    sent -= skipped;
    connection.backlog.append(static_cast<const std::byte*>(part.iov_base) + skipped, part.iov_len - skipped);
  }
  if (was_empty && !connection.backlog.empty())
    around_.watch_room(connection.serial, connection.socket.get(), true);
}

// The unix socket takes nothing any more; what it sent may still be there to be read.
void Device::host_left(Connection& connection) {
  connection.credit.forward(static_cast<u32>(connection.backlog.size()));
  connection.backlog.clear();
  if (connection.stage == Stage::lingering) return drop(connection, false);
  host_ended(connection, kNoReceive);
}

void Device::flush(Connection& connection) {
  while (!connection.backlog.empty()) {
    const ssize_t count = send(connection.socket.get(), connection.backlog.data(), connection.backlog.size(),
                               MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && is_full(errno)) return;
    if (count < 0) return host_left(connection);
    connection.credit.forward(static_cast<u32>(count));
    connection.backlog.take(static_cast<size_t>(count));
    if (connection.credit.should_tell() && !connection.update_queued && connection.stage == Stage::open) {
      notice(connection, Op::credit_update);
      connection.update_queued = true;
    }
  }
  if (connection.stage == Stage::lingering) return drop(connection, false);
  around_.watch_room(connection.serial, connection.socket.get(), false);
  if ((connection.guest_ended & kNoSend) != 0) ::shutdown(connection.socket.get(), SHUT_WR);
}

void Device::take_shutdown(Connection& connection, u32 flags) {
  connection.guest_ended |= flags & kNeither;
  if (connection.guest_ended == kNeither) {
    // The guest has done with it. What it sent before goes on to the host without it.
    refuse(connection.ports);
    if (connection.backlog.empty()) {
      by_ports_.erase(connection.ports);
      connections_.erase(connection.serial);
      return;
    }
    by_ports_.erase(connection.ports);
    connection.stage = Stage::lingering;
    ::shutdown(connection.socket.get(), SHUT_RD);
    return;
  }
  if (connection.stage != Stage::open) return;
  if ((connection.guest_ended & kNoReceive) != 0) {
    connection.readable = false;
    ::shutdown(connection.socket.get(), SHUT_RD);
  }
  if ((connection.guest_ended & kNoSend) != 0 && connection.backlog.empty())
    ::shutdown(connection.socket.get(), SHUT_WR);
}

}  // namespace gpupool::vsock
