// Reading and writing all of something on a blocking socket.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>

#include "wire/cpp/futex.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::wire {

// Sends every byte of the pieces, which it consumes. False when the connection is gone.
inline bool send_all(int fd, iovec* pieces, size_t count) {
  while (count > 0) {
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = count < 64 ? count : 64;
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    while (count > 0 && static_cast<size_t>(sent) >= pieces->iov_len) {
      sent -= static_cast<ssize_t>(pieces->iov_len);
      ++pieces;
      --count;
    }
    if (count > 0) {
      pieces->iov_base = static_cast<u8*>(pieces->iov_base) + sent;
      pieces->iov_len -= static_cast<size_t>(sent);
    }
  }
  return true;
}

// Reads exactly `size` bytes. False at the end of the stream or on an error.
inline bool read_all(int fd, void* data, size_t size) {
  auto* next = static_cast<u8*>(data);
  while (size > 0) {
    const ssize_t got = recv(fd, next, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    next += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

// The same for the first bytes of a message, which may be long in coming: looks without sleeping for
// `spin_us` first, because being woken costs more than a message takes on a fast network. No spinning on one
// or two cores.
inline bool read_next(int fd, void* data, size_t size, u32 spin_us) {
  if (Backoff::spare_cores()) {
    const u64 start = monotonic_ns();
    do {
      const ssize_t got = recv(fd, data, size, MSG_DONTWAIT);
      if (got > 0) return read_all(fd, static_cast<u8*>(data) + got, size - static_cast<size_t>(got));
      if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return false;
      for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
    } while (monotonic_ns() - start < u64{spin_us} * 1000);
  }
  return read_all(fd, data, size);
}

}  // namespace gpupool::wire
