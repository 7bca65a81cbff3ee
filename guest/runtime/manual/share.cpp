// Descriptors that hold tokens. How we know that the program's is closed everywhere: it carries a lock
// (flock(2)), which belongs to the open file and not to a descriptor, so that it goes with the last copy, in
// whichever process that is. We keep another open file of the same memory and try the lock.
#include "guest/runtime/manual/share.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <vector>

#include "guest/runtime/message.hpp"

namespace gpupool::guest {
namespace {

struct Given {
  int watch = -1;
  wire::ShareToken token;
};

struct TokenFiles {
  std::mutex mutex;
  std::vector<Given> given;
  size_t look_at = 64;  // so many of them: time to look through them

  // Never destroyed: programs release memory in their exit handlers.
  static TokenFiles& instance() {
    static auto* files = new TokenFiles();
    return *files;
  }
};

// A second open file of the same memory; the first one's lock is not this one's.
int open_again(int fd) {
  char path[48];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return open(path, O_RDONLY | O_CLOEXEC);
}

void drop(const wire::ShareToken& token) {
  Call call(wire::Function::share_drop);
  call.put(token);
  static_cast<void>(call.send());  // a session that has failed has left nothing
}

}  // namespace

int make_token_file(wire::ShareKind kind, const wire::ShareToken& token) {
  wire::ShareHandle handle;
  handle.kind = kind;
  handle.token = token;
  const int fd = memfd_create("gpupool-share", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  const int watch =
      write(fd, &handle, sizeof handle) == sizeof handle && flock(fd, LOCK_SH) == 0 ? open_again(fd) : -1;
  if (watch < 0) {
    close(fd);
    return -1;
  }
  fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  TokenFiles& files = TokenFiles::instance();
  const std::lock_guard lock(files.mutex);
  files.given.push_back({watch, token});
  return fd;
}

bool read_token_file(int fd, wire::ShareKind kind, wire::ShareToken& token) {
  struct stat facts {};
  wire::ShareHandle handle;
  // Regular files only: reading anything else may wait.
  if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return false;
  if (pread(fd, &handle, sizeof handle, 0) != sizeof handle) return false;
  token = handle.token;
  return handle.magic == wire::kShareMagic && handle.kind == kind;
}

bool collect_token_files(bool all) {
  TokenFiles& files = TokenFiles::instance();
  std::vector<Given> closed;
  {
    const std::lock_guard lock(files.mutex);
    if (!all && files.given.size() < files.look_at) return false;
    const auto first = std::partition(files.given.begin(), files.given.end(), [](const Given& one) {
      return flock(one.watch, LOCK_EX | LOCK_NB) != 0;
    });
    closed.assign(first, files.given.end());
    files.given.erase(first, files.given.end());
    files.look_at = std::max<size_t>(64, files.given.size() * 2);
  }
  for (const Given& one : closed) {
    close(one.watch);
    drop(one.token);
  }
  return !closed.empty();
}

}  // namespace gpupool::guest
