#include "hostd/softgpu/api/shared_file.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

namespace gpupool::softgpu {

namespace {

constexpr const char* kFolder = "/dev/shm/";
constexpr const char* kPrefix = "gpupool-softgpu-";

std::string path_of(u64 number) {
  char text[64];
  std::snprintf(text, sizeof text, "%s%s%016llx", kFolder, kPrefix, static_cast<unsigned long long>(number));
  return text;
}

u64 random_number() {
  u64 number = 0;
  require(getrandom(&number, sizeof number, 0) == sizeof number, CUDA_ERROR_OPERATING_SYSTEM);
  return number;
}

u64 this_process() {
  static const u64 number = random_number();
  return number;
}

// Makers hold a lock on their files; who ends without a word leaves files that nobody has locked.
void remove_left_behind() {
  DIR* folder = opendir(kFolder);
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    if (std::strncmp(entry->d_name, kPrefix, std::strlen(kPrefix)) != 0) continue;
    const int fd = openat(dirfd(folder), entry->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) continue;  // another user's
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlinkat(dirfd(folder), entry->d_name, 0);
    close(fd);
  }
  closedir(folder);
}

}  // namespace

std::shared_ptr<SharedFile> SharedFile::create(u64 bytes) {
  static std::once_flag once;
  std::call_once(once, remove_left_behind);
  const u64 number = random_number();
  const std::string path = path_of(number);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  require(fd >= 0, CUDA_ERROR_OPERATING_SYSTEM);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    unlink(path.c_str());
    close(fd);
    fail(CUDA_ERROR_OPERATING_SYSTEM);
  }
  return std::shared_ptr<SharedFile>(new SharedFile(fd, number, bytes, true));
}

std::shared_ptr<SharedFile> SharedFile::open(const SharedHandle& handle) {
  require(handle.magic == SharedHandle::kMagic);
  require(handle.process != this_process(), CUDA_ERROR_INVALID_CONTEXT);
  const int fd = ::open(path_of(handle.file).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  require(fd >= 0);
  struct stat facts {};
  const bool fits = fstat(fd, &facts) == 0 && handle.size != 0 &&
                    handle.offset <= static_cast<u64>(facts.st_size) &&
                    handle.size <= static_cast<u64>(facts.st_size) - handle.offset;
  if (!fits) close(fd);
  require(fits);
  return std::shared_ptr<SharedFile>(new SharedFile(fd, handle.file, static_cast<u64>(facts.st_size), false));
}

SharedFile::~SharedFile() {
  if (own_) unlink(path_of(number_).c_str());
  close(fd_);
}

void* SharedFile::map(void* address) const {
  const int fixed = address == nullptr ? 0 : MAP_FIXED;
  void* got = mmap(address, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | fixed, fd_, 0);
  require(got != MAP_FAILED, CUDA_ERROR_OUT_OF_MEMORY);
  return got;
}

SharedHandle SharedFile::handle(u64 offset, u64 size, int device) const {
  SharedHandle handle;
  handle.file = number_;
  handle.process = this_process();
  handle.offset = offset;
  handle.size = size;
  handle.device = static_cast<u32>(device);
  return handle;
}

}  // namespace gpupool::softgpu
