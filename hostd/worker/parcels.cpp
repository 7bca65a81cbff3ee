#include "hostd/worker/parcels.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "wire/cpp/parcel.hpp"

namespace gpupool::worker {
namespace {

constexpr size_t kMostWaiting = 64;

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this == &other) return *this;
  if (fd_ >= 0) close(fd_);
  fd_ = other.release();
  return *this;
}

bool Parcels::receive(int socket) {
  wire::Parcel parcel;
  iovec piece{&parcel, sizeof parcel};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  Descriptor descriptor;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    if (header->cmsg_len != CMSG_LEN(sizeof(int))) return false;  // room for one was all there is
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    descriptor = Descriptor(fd);
  }
  if (got != sizeof parcel || parcel.magic != wire::kParcelMagic || descriptor.get() < 0 ||
      (message.msg_flags & MSG_CTRUNC) != 0)
    return false;
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= kMostWaiting) return false;
  if (!waiting_.try_emplace(parcel.id, std::move(descriptor)).second) return false;
  arrived_.notify_all();
  return true;
}

Descriptor Parcels::take(u64 id) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, patience, [&] { return waiting_.contains(id); });
  const auto found = waiting_.find(id);
  if (found == waiting_.end()) return Descriptor();
  Descriptor descriptor = std::move(found->second);
  waiting_.erase(found);
  return descriptor;
}

}  // namespace gpupool::worker
