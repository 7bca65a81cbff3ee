#include "guest/opengl/room.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "guest/runtime/transport/endpoint.hpp"

namespace gpupool::guest::opengl {
namespace {

bool failed(std::string& why, const std::string& what) {
  why = what + ": " + std::strerror(errno);
  return false;
}

bool write_file(const char* path, const std::string& text) {
  const Descriptor file(open(path, O_WRONLY | O_CLOEXEC));
  return file.get() >= 0 && write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// Something must be there to be covered. What is another user's could be taken away or exchanged at any time,
// and what the program sends would be that user's: only root's and our own is used. Nobody else can remove
// that from a folder like /tmp.
bool prepare_name(std::string& why) {
  const Descriptor made(open(kFixedName, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  struct stat facts {};
  if (lstat(kFixedName, &facts) != 0) return failed(why, kFixedName);
  if (facts.st_uid != 0 && facts.st_uid != geteuid()) {
    why = std::string(kFixedName) + " belongs to user " + std::to_string(facts.st_uid) +
          ", who could read what programs draw; have it removed";
    return false;
  }
  if (S_ISREG(facts.st_mode) || S_ISSOCK(facts.st_mode)) return true;
  why = std::string(kFixedName) + " is no file and no socket; remove it";
  return false;
}

// Where everybody is who they were. Without it only root may mount.
bool enter_user_namespace(std::string& why) {
  const std::string user = std::to_string(geteuid());
  const std::string group = std::to_string(getegid());
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
    return failed(why, "this system gives no user namespaces to users (unshare)");
  if (!write_file("/proc/self/setgroups", "deny") ||
      !write_file("/proc/self/uid_map", user + " " + user + " 1") ||
      !write_file("/proc/self/gid_map", group + " " + group + " 1"))
    return failed(why, "cannot set up a user namespace");
  return true;
}

}  // namespace

bool enter(const std::string& path, std::string& why) {
  if (!prepare_name(why)) return false;
  // Root in a container may lack the right, and then has user namespaces like anybody.
  if (unshare(CLONE_NEWNS) != 0 && !enter_user_namespace(why)) return false;
  // What is mounted here must not show anywhere else; what is mounted elsewhere may still show here.
  if (mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) return failed(why, "mount /");
  if (mount(path.c_str(), kFixedName, nullptr, MS_BIND, nullptr) == 0) return true;
  return failed(why, std::string("mount ") + kFixedName);
}

}  // namespace gpupool::guest::opengl
