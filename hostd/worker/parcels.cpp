#include "hostd/worker/parcels.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "wire/cpp/descriptor_passing.hpp"
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
  int fd = -1;
  const ssize_t got = wire::receive_with_descriptor(socket, &parcel, sizeof parcel, fd, MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  Descriptor descriptor(fd);
  if (got != sizeof parcel || parcel.magic != wire::kParcelMagic || descriptor.get() < 0) return false;
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
