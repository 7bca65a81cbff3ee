#include "hostd/vsock/relay.hpp"

#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "hostd/worker/log.hpp"

namespace gpupool::vsock {
namespace {

using worker::log;
using worker::LogLevel;

constexpr unsigned kWhatShift = 56;
constexpr u64 kNumberMask = (u64{1} << kWhatShift) - 1;
// Not EPOLLOUT, which would wake us for every message that the other end reads.
constexpr u32 kStreamEvents = EPOLLIN | EPOLLRDHUP | EPOLLET;

}  // namespace

Relay::Relay(u64 cid, Openings openings)
    : openings_(std::move(openings)),
      device_(cid, *this),
      door_([this](u64 visitor, int socket) { return add(socket, kVisitor, visitor, EPOLLIN | EPOLLET); },
            [this](Descriptor socket, u32 port) {
              epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket.get(), nullptr);
              return device_.offer(std::move(socket), port);
            }) {}

bool Relay::add(int fd, What what, u64 number, u32 events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = u64{what} << kWhatShift | (number & kNumberMask);
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

bool Relay::open(std::string& error) {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (epoll_ && add(openings_.qemu.get(), kQemuDoor, 0, EPOLLIN) &&
      add(openings_.host.get(), kHostDoor, 0, EPOLLIN) && add(openings_.signals.get(), kSignal, 0, EPOLLIN) &&
      add(openings_.changes.get(), kFolder, 0, EPOLLIN) &&
      add(openings_.connector.socket(), kConnector, 0, EPOLLIN))
    return true;
  error = std::string("epoll: ") + std::strerror(errno);
  return false;
}

bool Relay::watch(u64 serial, int socket) {
  return add(socket, kConnection, serial, kStreamEvents);
}

void Relay::watch_room(u64 serial, int socket, bool begin) {
  epoll_event event{};
  event.events = begin ? kStreamEvents | EPOLLOUT : kStreamEvents;
  event.data.u64 = u64{kConnection} << kWhatShift | (serial & kNumberMask);
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, socket, &event);  // cannot fail: it is watched, and a socket
}

void Relay::call(u32 ring) {
  if (qemu_) qemu_->call(ring);
}

int Relay::timeout_ms(bool more) const {
  if (more) return 0;
  const auto until = std::min(device_.deadline(), door_.deadline());
  if (until == Device::Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(
      until - std::max(Device::Clock::now(), Device::Clock::time_point{}));
  return static_cast<int>(std::clamp<i64>(left.count(), 0, INT_MAX));
}

bool Relay::run() {
  std::array<epoll_event, 64> events;
  bool more = false;
  while (qemu_ || !(told_to_end_ || folder_is_gone_)) {
    const int count =
        epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms(more));
    if (count < 0 && errno != EINTR) {
      log(LogLevel::error, "epoll_wait failed", std::strerror(errno));
      return false;
    }
    for (int i = 0; i < count; ++i) {
      const epoll_event event = events[static_cast<size_t>(i)];
      if (!handle(static_cast<What>(event.data.u64 >> kWhatShift), event.data.u64 & kNumberMask,
                  event.events))
        return false;
    }
    const auto now = Device::Clock::now();
    if (device_.deadline() <= now) device_.expire(now);
    if (door_.deadline() <= now) door_.expire(now);
    more = device_.turn();
  }
  return true;
}

bool Relay::handle(What what, u64 number, u32 events) {
  switch (what) {
    case kQemuDoor:
      take_qemu();
      return true;
    case kHostDoor:
      take_visitors();
      return true;
    case kSignal: {
      signalfd_siginfo signal;
      if (read(openings_.signals.get(), &signal, sizeof signal) == sizeof signal) told_to_end_ = true;
      return true;
    }
    case kFolder:
      look_at_folder();
      return true;
    case kConnector:
      return take_answers();
    case kQemu:
      read_qemu();
      return true;
    case kKick:  // the turn after it does the rest
      return true;
    case kVisitor:
      door_.ready(number);
      return true;
    case kConnection:
      device_.ready(number, {.readable = (events & (EPOLLIN | EPOLLERR)) != 0,
                             .writable = (events & EPOLLOUT) != 0,
                             .ended = (events & EPOLLRDHUP) != 0,
                             .hung_up = (events & EPOLLHUP) != 0});
      return true;
  }
  return true;
}

void Relay::take_qemu() {
  // The one before may have gone without our having seen it.
  if (qemu_) read_qemu();
  Descriptor come(accept4(openings_.qemu.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!come) return;
  if (qemu_) {
    log(LogLevel::warning, "a second QEMU is refused: the VM has one");
    return;
  }
  if (!add(come.get(), kQemu, 0, EPOLLIN)) return;
  log(LogLevel::info, "QEMU has come");
  qemu_ = std::make_unique<VhostUser>(std::move(come), device_, [this](int kick, bool begin) {
    // Every write wakes an edge-triggered watch, so nobody need read the count. QEMU has the same eventfd:
    // closing it here would not end the watch.
    return begin ? add(kick, kKick, 0, EPOLLIN | EPOLLET)
                 : epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, kick, nullptr) == 0;
  });
}

void Relay::read_qemu() {
  if (!qemu_ || qemu_->read()) return;
  qemu_.reset();
  log(LogLevel::info, "QEMU has gone");
}

void Relay::take_visitors() {
  Descriptor come(accept4(openings_.host.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (come) door_.enter(std::move(come));
}

bool Relay::take_answers() {
  Connector::Answer answer;
  for (;;) {
    const Connector::Got got = openings_.connector.take(answer);
    if (got == Connector::Got::nothing) return true;
    if (got == Connector::Got::end) {
      log(LogLevel::error, "the process that connects has ended");
      return false;
    }
    device_.connected(answer.serial, std::move(answer.socket));
  }
}

void Relay::look_at_folder() {
  alignas(inotify_event) char news[4096];
  while (read(openings_.changes.get(), news, sizeof news) > 0) {
  }
  struct stat facts {};
  folder_is_gone_ = fstat(openings_.folder.get(), &facts) != 0 || facts.st_nlink == 0;
}

}  // namespace gpupool::vsock
