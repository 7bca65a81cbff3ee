// Finding the file: /proc/self/maps tells device and inode (proc_pid_maps(5)). A file without a name, as
// memfds and unlinked ones in /dev/shm, is looked for among the descriptors that the program has open, and
// then in /proc/self/map_files, which only privileged programs may use.
#include "guest/runtime/manual/shared_mapping.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

namespace gpupool::guest {
namespace {

struct Mapped {
  u64 begin = 0, end = 0;
  u64 offset = 0;
  dev_t device = 0;
  ino_t inode = 0;
  std::string path;
  std::string range;  // "7f0-7f1", as map_files names it
};

struct CloseFile {
  void operator()(FILE* file) const { static_cast<void>(fclose(file)); }
};
struct CloseFolder {
  void operator()(DIR* folder) const { closedir(folder); }
};

// The mapping that holds [begin, end) whole, if it is shared, writable and of a file.
std::optional<Mapped> find_mapping(u64 begin, u64 end) {
  const std::unique_ptr<FILE, CloseFile> maps(fopen("/proc/self/maps", "re"));
  if (maps == nullptr) return std::nullopt;
  char* line = nullptr;
  size_t room = 0;
  std::optional<Mapped> found;
  while (getline(&line, &room, maps.get()) > 0) {
    Mapped one;
    char rights[8] = {};
    unsigned major = 0, minor = 0;
    u64 inode = 0;
    int path_at = 0;
    if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64 " %n", &one.begin,
                    &one.end, rights, &one.offset, &major, &minor, &inode, &path_at) < 7)
      continue;
    if (begin < one.begin || end > one.end) continue;
    if (rights[0] != 'r' || rights[1] != 'w' || rights[3] != 's' || inode == 0) break;
    one.device = makedev(major, minor);
    one.inode = static_cast<ino_t>(inode);
    one.path = line + path_at;
    while (!one.path.empty() && one.path.back() == '\n') one.path.pop_back();
    const std::string text = line;
    one.range = text.substr(0, text.find(' '));
    found = std::move(one);
    break;
  }
  std::free(line);
  return found;
}

bool is_file(int fd, const Mapped& wanted) {
  struct stat facts {};
  return fstat(fd, &facts) == 0 && facts.st_dev == wanted.device && facts.st_ino == wanted.inode &&
         (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR;
}

int open_as(const char* path, const Mapped& wanted) {
  const int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0 || is_file(fd, wanted)) return fd;
  close(fd);
  return -1;
}

int find_open(const Mapped& wanted) {
  const std::unique_ptr<DIR, CloseFolder> folder(opendir("/proc/self/fd"));
  if (folder == nullptr) return -1;
  while (const dirent* entry = readdir(folder.get())) {
    char* end = nullptr;
    const long fd = std::strtol(entry->d_name, &end, 10);
    if (*end != 0 || !is_file(static_cast<int>(fd), wanted)) continue;
    return fcntl(static_cast<int>(fd), F_DUPFD_CLOEXEC, 0);
  }
  return -1;
}

}  // namespace

std::optional<SharedMapping> find_shared_mapping(u64 begin, u64 end) {
  const std::optional<Mapped> mapped = find_mapping(begin, end);
  if (!mapped) return std::nullopt;
  int fd = open_as(mapped->path.c_str(), *mapped);
  if (fd < 0) fd = find_open(*mapped);
  if (fd < 0) fd = open_as(("/proc/self/map_files/" + mapped->range).c_str(), *mapped);
  if (fd < 0) return std::nullopt;
  return SharedMapping{fd, mapped->offset + (begin - mapped->begin)};
}

}  // namespace gpupool::guest
