// Reading and writing all of something on a blocking socket.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>

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

}  // namespace gpupool::wire
