#include "hostd/renderer/resources.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "wire/cpp/reader.hpp"

namespace gpupool::renderer {
namespace {

constexpr u64 kGranule = 4096;  // a driver gives no less to a resource

}  // namespace

SharedMemory::~SharedMemory() {
  if (area_.iov_base != nullptr) munmap(area_.iov_base, area_.iov_len);
}

int SharedMemory::make(u64 bytes) {
  const int fd = memfd_create("gpupool-opengl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  void* mapped = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(bytes)) == 0 && fcntl(fd, F_ADD_SEALS, kSeals) == 0)
    mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) {
    close(fd);
    return -1;
  }
  area_ = {mapped, bytes};
  return fd;
}

Resources::Refusal Resources::add(u32 handle, const Shape& shape, Resource*& made) {
  if (handle == 0 || resources_.contains(handle))
    throw wire::ProtocolError("resource " + std::to_string(handle) + " made twice");
  const std::optional<u64> bytes = device_bytes(shape);
  if (!bytes) throw wire::ProtocolError("a resource of a shape that OpenGL does not have");
  if (resources_.size() >= most_) return Refusal::count;
  const u64 charged = (*bytes + kGranule - 1) / kGranule * kGranule;
  if (!account_.reserve(charged)) return Refusal::memory;
  bytes_ += charged;
  made = &resources_[handle];
  made->shape = shape;
  made->bytes = charged;
  return Refusal::none;
}

Resource* Resources::find(u32 handle) {
  const auto found = resources_.find(handle);
  return found == resources_.end() ? nullptr : &found->second;
}

int Resources::share(Resource& resource, u64 bytes) {
  if (bytes > most_shared_bytes_ - shared_bytes_) return -1;
  const int fd = resource.memory.make(bytes);
  if (fd >= 0) shared_bytes_ += bytes;
  return fd;
}

void Resources::remove(u32 handle) {
  const auto found = resources_.find(handle);
  if (found == resources_.end()) return;
  account_.give_back(found->second.bytes);
  bytes_ -= found->second.bytes;
  shared_bytes_ -= found->second.memory.bytes();
  resources_.erase(found);
}

}  // namespace gpupool::renderer
