// A descriptor beside a message over a unix socket (unix(7), SCM_RIGHTS).
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace gpupool::wire {

// One sendmsg() of `size` bytes, with the descriptor unless it is negative; its result.
inline ssize_t send_with_descriptor(int socket, const void* data, size_t size, int fd, int flags) {
  iovec piece{const_cast<void*>(data), size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  }
  return sendmsg(socket, &message, flags);
}

// One recvmsg() of up to `size` bytes; its result. `fd` is the descriptor that came with them, the caller's
// to close and closed by exec, or -1. Who sends more than one gets them closed here, and -1 with EPROTO: two
// fit where there is room for one, since CMSG_SPACE rounds up, and one that nobody looks at would stay open.
inline ssize_t receive_with_descriptor(int socket, void* data, size_t size, int& fd, int flags) {
  iovec piece{data, size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  fd = -1;
  const ssize_t got = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  if (got < 0) return got;
  bool several = (message.msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* one = CMSG_FIRSTHDR(&message); one != nullptr; one = CMSG_NXTHDR(&message, one)) {
    if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      if (fd >= 0) {
        close(fd);
        several = true;
      }
      std::memcpy(&fd, CMSG_DATA(one) + i * sizeof fd, sizeof fd);
    }
  }
  if (!several) return got;
  if (fd >= 0) close(fd);
  fd = -1;
  errno = EPROTO;
  return -1;
}

}  // namespace gpupool::wire
