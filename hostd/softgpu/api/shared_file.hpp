// Files in /dev/shm through which processes of one user share what cuIpc* shares on a GPU. A file lives as
// long as the process that made it, or until that one lets go; what others have mapped stays with them.
#pragma once

#include <memory>

#include "hostd/softgpu/api/api.hpp"

namespace gpupool::softgpu {

// What CUipcMemHandle, CUipcEventHandle and CUmemPoolPtrExportData hold.
struct SharedHandle {
  static constexpr u64 kMagic = 0x3155'5047'5446'4f53;  // "SOFTGPU1"
  u64 magic = kMagic;
  u64 file = 0;     // its number
  u64 process = 0;  // who made it: random, one a process
  u64 offset = 0;
  u64 size = 0;
  u32 device = 0;
  u32 unused[5] = {};
};
static_assert(sizeof(SharedHandle) == 64);

class SharedFile {
 public:
  // A new file of that size. Error OPERATING_SYSTEM.
  static std::shared_ptr<SharedFile> create(u64 bytes);
  // Another process's. Error INVALID_VALUE when there is none, INVALID_CONTEXT for one of our own: as the
  // driver, we open nothing that this process has given out itself.
  static std::shared_ptr<SharedFile> open(const SharedHandle& handle);
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] u64 bytes() const { return bytes_; }
  // Maps all of it: at `address`, over what is there, or, with null, anywhere. Error OUT_OF_MEMORY.
  void* map(void* address = nullptr) const;
  // A handle that others can open.
  [[nodiscard]] SharedHandle handle(u64 offset, u64 size, int device) const;

 private:
  SharedFile(int fd, u64 number, u64 bytes, bool own) : fd_(fd), number_(number), bytes_(bytes), own_(own) {}
  int fd_;
  u64 number_;
  u64 bytes_;
  bool own_;
};

}  // namespace gpupool::softgpu
