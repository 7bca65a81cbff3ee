// Sending from the window by reference: MSG_ZEROCOPY on plain TCP sockets (Linux 4.14; the kernel's
// Documentation/networking/msg_zerocopy.rst). The kernel reads the pages when the network card does, and says
// on the socket's error queue when it has let go of them. Until then they stay as they are: that is what
// SentPieces keeps, and what the two waits here are for.
//
// Where it cannot pay it ends by itself. A kernel that copied after all says so in its notices (loopback,
// veth, cards that cannot gather): after a few in a row that socket copies as ever, for good. A kernel that
// has no room for a notice, or may pin no more of this user's memory (ENOBUFS: net.core.optmem_max,
// RLIMIT_MEMLOCK), makes that one piece a copy, which is counted. Sockets that are no TCP (TLS and RDMA have
// a socket pair in between, vsock has a queue of its own) are never asked.
#pragma once

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <memory>
#include <string_view>
#include <vector>

#include "wire/cpp/sent_pieces.hpp"
#include "wire/cpp/stream_frame.hpp"
#include "wire/cpp/stream_io.hpp"

namespace gpupool::wire {

enum class ZeroCopyMode : u32 {
  off,
  automatic,  // until the kernel says that it copies anyway
  always,     // even then, for tests and to measure what it costs
};

// What users call them. False for any other word.
inline bool zero_copy_mode(std::string_view word, ZeroCopyMode& mode) {
  constexpr std::string_view kWords[] = {"off", "auto", "always"};
  for (u32 i = 0; i < std::size(kWords); ++i) {
    if (word != kWords[i]) continue;
    mode = static_cast<ZeroCopyMode>(i);
    return true;
  }
  return false;
}

inline constexpr u64 kZeroCopyFrom = 64u << 10;  // for less, pages and notices cost more than the copy
inline constexpr u32 kCopiedAnyway = 4;          // sends in a row that the kernel copied after all
inline constexpr u64 kNoticeLimitMs = 10'000;    // for a notice whose data the other side says it has
inline constexpr int kNoticeLookMs = 5;          // another thread may read the notice that a wait is for

// Of one side of a session.
struct ZeroCopyTotals {
  std::atomic<u64> bytes{0};        // sent by reference
  std::atomic<u64> late_copies{0};  // of these, copied by the kernel after all
  std::atomic<u64> refused{0};      // sends for which the kernel had no room (ENOBUFS)
};

// One connection's sends. One thread sends; any may collect.
class ZeroCopySocket {
 public:
  ZeroCopySocket(int fd, ZeroCopyMode mode, SentPieces& pieces, ZeroCopyTotals& totals)
      : fd_(fd), mode_(mode), pieces_(pieces), totals_(totals) {
    int domain = 0, one = 1;
    socklen_t size = sizeof domain;
    if (mode == ZeroCopyMode::off || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 ||
        (domain != AF_INET && domain != AF_INET6))
      return;
    on_.store(setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) == 0, std::memory_order_relaxed);
  }

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] bool on() const { return on_.load(std::memory_order_relaxed); }
  [[nodiscard]] bool outstanding() const { return outstanding_.load(std::memory_order_acquire) != 0; }

  // A data frame whose bytes belong to that piece. False when the connection is gone.
  bool send(Frame frame, u8* data, u64 piece) {
    // By itself: of a send by reference the header would be a reference, too.
    if (!send_header(frame)) return false;
    for (u64 left = frame.size; left > 0;) {
      const ssize_t sent = on() ? by_reference(data, left, piece) : -ENOBUFS;
      if (sent == -EINTR) continue;
      if (sent == -ENOBUFS) {
        iovec rest{data, left};
        const bool all = send_all(fd_, &rest, 1);
        pieces_.done(piece, left);
        return all;
      }
      if (sent <= 0) return false;
      data += sent;
      left -= static_cast<u64>(sent);
    }
    return true;
  }

  // Reads the notices that are there. Does not wait.
  void collect() {
    while (outstanding()) {
      alignas(cmsghdr) u8 control[CMSG_SPACE(sizeof(sock_extended_err) + sizeof(sockaddr_in6))];
      msghdr message{};
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      if (recvmsg(fd_, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;
      for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
        const bool v4 = part->cmsg_level == SOL_IP && part->cmsg_type == IP_RECVERR;
        const bool v6 = part->cmsg_level == SOL_IPV6 && part->cmsg_type == IPV6_RECVERR;
        if (!v4 && !v6) continue;
        sock_extended_err notice;
        std::memcpy(&notice, CMSG_DATA(part), sizeof notice);
        if (notice.ee_origin == SO_EE_ORIGIN_ZEROCOPY && notice.ee_errno == 0)
          note(notice.ee_info, notice.ee_data, (notice.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0);
      }
    }
  }

 private:
  struct Sent {
    u64 piece;
    u64 bytes;  // 0 as long as the send has not come back
    bool told;  // the kernel has let go
  };

  bool send_header(const Frame& frame) {
    const auto* next = reinterpret_cast<const u8*>(&frame);
    for (size_t left = sizeof frame; left > 0;) {
      const ssize_t sent = ::send(fd_, next, left, MSG_NOSIGNAL | MSG_MORE);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return false;
      next += sent;
      left -= static_cast<size_t>(sent);
    }
    return true;
  }

  // One send; the bytes that it took, or the error, negative.
  ssize_t by_reference(u8* data, u64 size, u64 piece) {
    collect();  // unread notices take room that the next one needs
    {
      const std::lock_guard lock(mutex_);
      sent_.push_back({piece, 0, false});
      outstanding_.fetch_add(1, std::memory_order_acq_rel);
    }
    iovec part{data, size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    const ssize_t sent = sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_ZEROCOPY);
    const int error = errno;
    const std::lock_guard lock(mutex_);
    if (sent <= 0) {  // the kernel has given it no number
      sent_.pop_back();
      outstanding_.fetch_sub(1, std::memory_order_acq_rel);
      if (error == ENOBUFS) totals_.refused.fetch_add(1, std::memory_order_relaxed);
      return sent == 0 ? -EPIPE : -error;
    }
    totals_.bytes.fetch_add(static_cast<u64>(sent), std::memory_order_relaxed);
    sent_.back().bytes = static_cast<u64>(sent);
    settle();
    return sent;
  }

  // The kernel has let go of the sends with these numbers. It counts from 0 and wraps after 2^32.
  void note(u32 from, u32 to, bool copied) {
    const std::lock_guard lock(mutex_);
    for (u32 index = from - first_; index <= to - first_ && index < sent_.size(); ++index) {
      sent_[index].told = true;
      copied_ = copied ? copied_ + 1 : 0;
      if (copied) totals_.late_copies.fetch_add(sent_[index].bytes, std::memory_order_relaxed);
    }
    if (copied_ >= kCopiedAnyway && mode_ == ZeroCopyMode::automatic)
      on_.store(false, std::memory_order_relaxed);
    settle();
  }

  // Notices come in order but for retransmissions; the pieces hear of each send once it is over.
  void settle() {
    for (Sent& one : sent_) {
      if (!one.told || one.bytes == 0) continue;
      if (one.piece != 0) pieces_.done(one.piece, one.bytes);
      one.piece = 0;
    }
    while (!sent_.empty() && sent_.front().told && sent_.front().bytes != 0) {
      sent_.pop_front();
      ++first_;
      outstanding_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  const int fd_;
  const ZeroCopyMode mode_;
  SentPieces& pieces_;
  ZeroCopyTotals& totals_;
  std::atomic<bool> on_{false};
  std::atomic<u64> outstanding_{0};  // sends without a notice
  std::mutex mutex_;
  std::deque<Sent> sent_;  // in the kernel's order
  u32 first_ = 0;          // the kernel's number of the front
  u32 copied_ = 0;         // in a row
};

// All connections of one side of a session, the first being the main one.
class ZeroCopy {
 public:
  ZeroCopy(ZeroCopyMode mode, int main_socket, const std::vector<int>& lanes) {
    sockets_.push_back(std::make_unique<ZeroCopySocket>(main_socket, mode, pieces_, totals_));
    for (const int lane : lanes)
      sockets_.push_back(std::make_unique<ZeroCopySocket>(lane, mode, pieces_, totals_));
  }

  [[nodiscard]] const ZeroCopyTotals& totals() const { return totals_; }

  // Begins a piece of the window's data; `mark` as in SentPieces. 0: send it by copying.
  u64 open(u64 mark, u64 offset, u64 size) {
    if (size < kZeroCopyFrom) return 0;
    for (const auto& socket : sockets_)
      if (socket->on()) return pieces_.open(mark, offset, size);
    return 0;
  }

  // A part of the piece, over one connection. False when that is gone.
  bool send_data_frame(size_t connection, const Window& window, u64 offset, u64 size, u64 piece) {
    Frame frame{FrameKind::data, 0, offset, size};
    ZeroCopySocket& socket = *sockets_[connection];
    if (piece != 0 && socket.on()) return socket.send(frame, window.base + offset, piece);
    iovec pieces[2] = {{&frame, sizeof frame}, {window.base + offset, size}};
    if (!send_all(socket.fd(), pieces, 2)) return false;
    if (piece != 0) pieces_.done(piece, size);
    return true;
  }

  // Waits until the kernel has let go of what was sent up to that mark. The other side says that it has it,
  // so this hardly ever sleeps. False when the connection is gone or the notice does not come.
  bool wait_until(u64 mark) {
    return pieces_.none() || wait([this, mark] { return pieces_.done_until(mark); });
  }

  // The same for a part of the staging area. Who uses it again says that it has what was there. Pinned memory
  // is the program's, which may have one copy follow another into it without looking: then it gets a mixture
  // of the two, by reference or not, and nobody waits for a slow network here.
  bool wait_for(u64 offset, u64 size) {
    return pieces_.none() || offset >= kHeapOffset ||
           wait([this, offset, size] { return pieces_.done_with(offset, size); });
  }

 private:
  template <class Done>
  bool wait(Done done) {
    if (done()) return true;
    const u64 start = monotonic_ns();
    while (true) {
      for (const auto& socket : sockets_) socket->collect();
      if (done()) return true;
      if (monotonic_ns() - start > kNoticeLimitMs * 1'000'000) return false;
      std::vector<pollfd> errors;  // no events asked for: errors and the end are always told
      for (const auto& socket : sockets_) errors.push_back({socket->fd(), 0, 0});
      if (poll(errors.data(), errors.size(), kNoticeLookMs) <= 0) continue;
      for (const pollfd& one : errors)
        if ((one.revents & (POLLHUP | POLLNVAL)) != 0) return false;
    }
  }

  SentPieces pieces_;
  ZeroCopyTotals totals_;
  std::vector<std::unique_ptr<ZeroCopySocket>> sockets_;
};

}  // namespace gpupool::wire
