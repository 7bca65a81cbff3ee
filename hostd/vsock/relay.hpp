// The process's one loop: epoll over QEMU's connection, the rings' kicks, the unix sockets of all
// connections, and who comes from the host.
//
// Sockets of connections are watched edge-triggered, once: a connection that cannot go on, for want of credit
// or of a buffer, costs nothing until it can.
#pragma once

#include <memory>
#include <string>

#include "hostd/vsock/connector.hpp"
#include "hostd/vsock/descriptor.hpp"
#include "hostd/vsock/device.hpp"
#include "hostd/vsock/host_door.hpp"
#include "hostd/vsock/vhost_user.hpp"

namespace gpupool::vsock {

// Made before the sandbox is entered, which makes none.
struct Openings {
  Descriptor qemu;     // listens for QEMU
  Descriptor host;     // listens for whoever wants the guest
  Descriptor signals;  // a signalfd: SIGTERM
  Descriptor folder;   // of the VM, to see whether it is still there
  Descriptor changes;  // inotify on what holds the folder
  Connector connector;
};

class Relay : private Surroundings {
 public:
  Relay(u64 cid, Openings openings);

  bool open(std::string& error);
  // Until QEMU has gone and nobody needs it any more. False if it cannot go on.
  bool run();

 private:
  // What an event is about: the upper byte of epoll's data, a number in the rest.
  enum What : u64 {
    kQemuDoor = 1,
    kHostDoor,
    kSignal,
    kFolder,
    kConnector,
    kQemu,
    kKick,
    kVisitor,
    kConnection
  };

  bool connect_port(u64 serial, u32 port) override { return openings_.connector.ask(serial, port); }
  bool watch(u64 serial, int socket) override;
  void watch_room(u64 serial, int socket, bool begin) override;
  void call(u32 ring) override;

  bool add(int fd, What what, u64 number, u32 events);
  bool handle(What what, u64 number, u32 events);
  void take_qemu();
  void read_qemu();
  void take_visitors();
  bool take_answers();
  void look_at_folder();
  [[nodiscard]] int timeout_ms(bool more) const;

  Openings openings_;
  Descriptor epoll_;
  Device device_;
  HostDoor door_;
  std::unique_ptr<VhostUser> qemu_;
  bool told_to_end_ = false;
  bool folder_is_gone_ = false;
};

}  // namespace gpupool::vsock
