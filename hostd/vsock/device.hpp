// The virtio-vsock device: moves bytes between the guest's buffers and unix sockets.
//
// Bytes from the guest go to a unix socket straight from the guest's pages, and back. Only what a full
// socket does not take is kept here, at most Credit::kBuffer a connection, and the guest is given no credit
// for it. Single-threaded; knows neither epoll nor vhost-user.
//
// Invariant: what a guest says ends at worst its own connections, or all of them (a broken ring), which is
// logged.
#pragma once

#include <array>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hostd/vsock/connection.hpp"
#include "hostd/vsock/guest_memory.hpp"
#include "hostd/vsock/packet.hpp"
#include "hostd/vsock/virtqueue.hpp"

namespace gpupool::vsock {

// What the device needs of the process around it.
class Surroundings {
 public:
  virtual ~Surroundings() = default;
  // Connect that port's unix socket: Device::connected() is called later.
  virtual bool connect_port(u64 serial, u32 port) = 0;
  // Call Device::ready() whenever there is more to read from that socket than before. False if it cannot be
  // watched.
  virtual bool watch(u64 serial, int socket) = 0;
  // Begin, or end, to call it also when the socket takes more.
  virtual void watch_room(u64 serial, int socket, bool begin) = 0;
  // Tell the guest to look at that ring.
  virtual void call(u32 ring) = 0;
};

// What has become of a socket.
struct Readiness {
  bool readable = false;
  bool writable = false;
  bool ended = false;    // the other end sends no more
  bool hung_up = false;  // nor does it receive
};

class Device {
 public:
  enum : u32 { kToGuest = 0, kFromGuest = 1, kEvents = 2, kRings = 3 };
  static constexpr size_t kMostConnections = 512;
  static constexpr size_t kMostNotices = 2048;  // a guest that does not take them is not listened to
  static constexpr std::chrono::seconds kOfferTimeout{10};
  using Clock = std::chrono::steady_clock;

  Device(u64 cid, Surroundings& around) : cid_(cid), around_(around) {}

  [[nodiscard]] u64 cid() const { return cid_; }
  // The guest's memory from now on; running rings are found in it again, or break.
  void set_memory(GuestMemory memory);
  bool start(u32 ring, const RingPlace& place, u16 next, bool event_index, std::string& error);
  u16 stop(u32 ring);
  // A guest without memory of what was: at its start, and when QEMU has gone.
  void forget_connections(std::string_view why);
  void forget_memory();
  // The guest has connections of an earlier device.
  void owe_transport_reset() { owes_reset_ = true; }

  void connected(u64 serial, Descriptor socket);
  void ready(u64 serial, const Readiness& what);
  // Somebody on the host wants that port of the guest's. False if the guest cannot be asked.
  bool offer(Descriptor socket, u32 guest_port);

  // Does what can be done. True if there is more to do at once.
  bool turn();
  // When expire() is next needed; the clock's maximum if never.
  [[nodiscard]] Clock::time_point deadline() const;
  void expire(Clock::time_point now);

  [[nodiscard]] size_t connections() const { return connections_.size(); }
  [[nodiscard]] bool serving() const;

 private:
  // A packet without data that waits for a buffer of the guest's.
  struct Notice {
    Ports ports;
    Op op = Op::reset;
    u32 flags = 0;
    u64 serial = 0;  // of its connection, 0 without
  };

  // device_from_guest.cpp
  bool take_from_guest();
  void take(const Chain& chain);
  void take_packet(const Header& header, std::span<const iovec> parts);
  void open_for_guest(const Header& header, Ports ports);
  void take_answer(Connection& connection);
  void take_data(Connection& connection, const Header& header, std::span<const iovec> parts);
  void take_shutdown(Connection& connection, u32 flags);
  void keep(Connection& connection, std::span<const iovec> parts, size_t sent);
  void flush(Connection& connection);
  void host_left(Connection& connection);

  // device_to_guest.cpp
  bool give_to_guest();
  bool give_notice(const Notice& notice);
  bool give_data(Connection& connection);
  size_t gather_room(size_t wanted, size_t& room);
  void hand_over(Connection& connection, size_t bytes, size_t chains);
  void host_ended(Connection& connection, u32 flags);
  void give_event();
  void get_in_line(Connection& connection);
  Header header_for(const Connection& connection, Op op, u32 bytes);

  Connection* find(u64 serial);
  Connection* find(Ports ports);
  Connection& make(Ports ports, Stage stage);
  void notice(const Connection& connection, Op op, u32 flags = 0);
  void refuse(Ports ports);
  // Forgets it; the guest is told with `reset`.
  void drop(Connection& connection, bool reset);
  void check(u32 ring);
  void memory_is_gone();

  const u64 cid_;
  Surroundings& around_;
  GuestMemory memory_;
  std::array<Virtqueue, kRings> rings_;
  std::unordered_map<u64, Connection> connections_;
  std::unordered_map<Ports, u64, PortsHash> by_ports_;
  std::deque<Notice> notices_;
  std::deque<u64> line_;     // connections with bytes for the guest, by serial
  std::deque<u64> offered_;  // in the order of their deadlines
  u64 next_serial_ = 1;
  u32 next_port_ = 0;
  bool owes_reset_ = false;
  bool said_broken_ = false;
  Chain chain_;               // kept for its memory
  std::vector<Chain> rooms_;  // likewise
  std::vector<iovec> parts_;  // likewise
};

}  // namespace gpupool::vsock
