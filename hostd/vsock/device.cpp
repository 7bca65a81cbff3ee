#include "hostd/vsock/device.hpp"

#include <algorithm>
#include <utility>

#include "hostd/worker/log.hpp"

namespace gpupool::vsock {
namespace {

using worker::log;
using worker::LogLevel;

constexpr u32 kFirstHostPort = 0x4000'0000;  // of connections that begin on the host; above any service's
constexpr u32 kHostPorts = 0x2000'0000;

}  // namespace

void Device::set_memory(GuestMemory memory) {
  memory_ = std::move(memory);
  for (u32 ring = 0; ring < kRings; ++ring) {
    std::string error;
    if (rings_[ring].running() && !rings_[ring].move(memory_, error)) rings_[ring].break_with(error);
    check(ring);
  }
}

void Device::forget_memory() {
  for (Virtqueue& ring : rings_) ring.stop();
  memory_.clear();
}

bool Device::start(u32 ring, const RingPlace& place, u16 next, bool event_index, std::string& error) {
  said_broken_ = false;
  return rings_[ring].start(memory_, place, next, event_index, error);
}

u16 Device::stop(u32 ring) {
  return rings_[ring].stop();
}

bool Device::serving() const {
  return rings_[kToGuest].running() && rings_[kFromGuest].running();
}

void Device::forget_connections(std::string_view why) {
  if (!connections_.empty())
    log(LogLevel::info, "connections ended",
        std::string(why) + ", connections=" + std::to_string(connections_.size()));
  connections_.clear();
  by_ports_.clear();
  notices_.clear();
  line_.clear();
  offered_.clear();
  owes_reset_ = false;
}

Connection* Device::find(u64 serial) {
  const auto found = connections_.find(serial);
  return found == connections_.end() ? nullptr : &found->second;
}

Connection* Device::find(Ports ports) {
  const auto found = by_ports_.find(ports);
  return found == by_ports_.end() ? nullptr : find(found->second);
}

Connection& Device::make(Ports ports, Stage stage) {
  const u64 serial = next_serial_++;
  Connection& connection = connections_[serial];
  connection.serial = serial;
  connection.ports = ports;
  connection.stage = stage;
  by_ports_[ports] = serial;
  return connection;
}

void Device::notice(const Connection& connection, Op op, u32 flags) {
  notices_.push_back({connection.ports, op, flags, connection.serial});
}

void Device::refuse(Ports ports) {
  notices_.push_back({ports, Op::reset, 0, 0});
}

void Device::drop(Connection& connection, bool reset) {
  if (connection.stage != Stage::lingering) {
    if (reset) refuse(connection.ports);
    by_ports_.erase(connection.ports);
  }
  connections_.erase(connection.serial);
}

void Device::connected(u64 serial, Descriptor socket) {
  Connection* connection = find(serial);
  if (connection == nullptr || connection->stage != Stage::asked) return;  // the guest has given up
  if (!socket || !around_.watch(serial, socket.get())) return drop(*connection, true);
  connection->socket = std::move(socket);
  connection->stage = Stage::open;
  notice(*connection, Op::response);
}

bool Device::offer(Descriptor socket, u32 guest_port) {
  if (!serving() || connections_.size() >= kMostConnections) return false;
  Ports ports{guest_port, 0};
  do ports.host = kFirstHostPort + next_port_++ % kHostPorts;
  while (by_ports_.contains(ports));  // ends: there are far fewer connections than ports
  Connection& connection = make(ports, Stage::offered);
  if (!around_.watch(connection.serial, socket.get())) {
    drop(connection, false);
    return false;
  }
  connection.socket = std::move(socket);
  connection.deadline = Clock::now() + kOfferTimeout;
  offered_.push_back(connection.serial);
  notice(connection, Op::request);
  return true;
}

Device::Clock::time_point Device::deadline() const {
  const auto first = offered_.empty() ? connections_.end() : connections_.find(offered_.front());
  if (offered_.empty()) return Clock::time_point::max();
  return first == connections_.end() ? Clock::time_point::min() : first->second.deadline;
}

void Device::expire(Clock::time_point now) {
  while (!offered_.empty()) {
    Connection* connection = find(offered_.front());
    const bool waits = connection != nullptr && connection->stage == Stage::offered;
    if (waits && connection->deadline > now) return;
    offered_.pop_front();
    if (!waits) continue;
    log(LogLevel::info, "the guest does not answer", "port=" + std::to_string(connection->ports.guest));
    drop(*connection, true);
  }
}

void Device::ready(u64 serial, const Readiness& what) {
  Connection* connection = find(serial);
  if (connection == nullptr) return;
  connection->ended = connection->ended || what.ended || what.hung_up;
  connection->hung_up = connection->hung_up || what.hung_up;
  if (connection->stage == Stage::offered) {
    connection->readable = true;  // whatever came is looked at when the guest has answered
    if (what.hung_up) drop(*connection, true);
    return;
  }
  if (connection->stage == Stage::lingering) {
    if (what.hung_up) return drop(*connection, false);
    if (what.writable) flush(*connection);
    return;
  }
  if (connection->stage != Stage::open) return;
  if (what.writable && !connection->backlog.empty()) {
    flush(*connection);
    connection = find(serial);
    if (connection == nullptr || connection->stage != Stage::open) return;
  }
  const bool no_more = ((connection->host_ended & kNoSend) | (connection->guest_ended & kNoReceive)) != 0;
  if (what.hung_up && no_more) return host_ended(*connection, kNeither);
  if ((what.readable || what.ended || what.hung_up) && !no_more) {
    connection->readable = true;
    get_in_line(*connection);
  }
}

bool Device::turn() {
  if (!serving()) return false;
  if (owes_reset_) give_event();
  const bool more_from = take_from_guest();
  const bool more_to = give_to_guest();
  for (u32 ring = 0; ring < kRings; ++ring) {
    if (rings_[ring].publish()) around_.call(ring);
    check(ring);
  }
  // One that takes no notices is heard again when it has given buffers for them.
  return serving() && (more_to || (more_from && notices_.size() < kMostNotices));
}

// A broken ring ends what the guest has here. It may start anew: QEMU 7.2 would not come back to a process
// that ended.
void Device::check(u32 ring) {
  if (rings_[ring].reason().empty() || said_broken_) return;
  said_broken_ = true;
  log(LogLevel::warning, "the guest broke a ring; its connections end",
      "ring=" + std::to_string(ring) + ", " + rings_[ring].reason());
  forget_connections("a ring is broken");
}

void Device::memory_is_gone() {
  for (Virtqueue& ring : rings_) ring.break_with("the guest's memory is gone");
}

}  // namespace gpupool::vsock
