// Landlock: which files the worker may open from now on (Documentation/userspace-api/landlock.rst). Only what
// a driver opens late: its own libraries (the PTX compiler), its devices, facts about the machine. Structures
// and numbers are those of include/uapi/linux/landlock.h, written down here because build machines' headers
// are older than the kernels this runs on.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "hostd/worker/sandbox.hpp"

namespace gpupool::worker {
namespace {

constexpr long kCreateRuleset = 444;
constexpr long kAddRule = 445;
constexpr long kRestrictSelf = 446;
constexpr unsigned kVersionFlag = 1;
constexpr int kPathBeneath = 1;

struct Ruleset {
  u64 files = 0;
  u64 network = 0;
  u64 scoped = 0;
};

struct [[gnu::packed]] PathBeneath {
  u64 allowed = 0;
  i32 parent = -1;
};

constexpr u64 kExecute = 1u << 0;
constexpr u64 kWriteFile = 1u << 1;
constexpr u64 kReadFile = 1u << 2;
constexpr u64 kReadDirectory = 1u << 3;
constexpr u64 kRemoveDirectory = 1u << 4;
constexpr u64 kRemoveFile = 1u << 5;
constexpr u64 kMakeDirectory = 1u << 7;
constexpr u64 kMakeFile = 1u << 8;
constexpr u64 kVersionOneRights = (1u << 13) - 1;
constexpr u64 kRefer = 1u << 13;          // version 2
constexpr u64 kTruncate = 1u << 14;       // version 3
constexpr u64 kDeviceControl = 1u << 15;  // version 5
constexpr u64 kTcp = 3;                   // version 4: bind and connect
constexpr u64 kScopes = 3;                // version 6: abstract unix sockets, signals
// What a rule on a file, as opposed to a folder, may hold.
constexpr u64 kFileRights = kExecute | kWriteFile | kReadFile | kTruncate | kDeviceControl;

constexpr u64 kRead = kReadFile | kReadDirectory;
constexpr u64 kDevice = kReadFile | kWriteFile | kDeviceControl | kReadDirectory;
constexpr u64 kScratch =
    kRead | kWriteFile | kTruncate | kMakeFile | kMakeDirectory | kRemoveFile | kRemoveDirectory;

struct Place {
  const char* path;
  u64 rights;
};

constexpr Place kPlaces[] = {
    {"/usr", kRead},
    {"/lib", kRead},
    {"/lib64", kRead},
    {"/etc/ld.so.cache", kRead},
    {"/etc/localtime", kRead},
    {"/etc/nvidia", kRead},
    {"/sys", kRead},
    {"/proc/driver", kRead},
    {"/proc/sys", kRead},
    {"/proc/cpuinfo", kRead},
    {"/proc/meminfo", kRead},
    {"/proc/devices", kRead},
    {"/proc/modules", kRead},
    {"/proc/filesystems", kRead},
    {"/proc/stat", kRead},
    {"/proc/version", kRead},
    {"/dev/null", kDevice},
    {"/dev/zero", kDevice},
    {"/dev/random", kRead},
    {"/dev/urandom", kRead},
    // The driver's own shared memory; each session's user owns its files there, so others stay closed.
    {"/dev/shm", kScratch},
};

class Rules {
 public:
  explicit Rules(int version) {
    wanted_.files = kVersionOneRights;
    if (version >= 2) wanted_.files |= kRefer;
    if (version >= 3) wanted_.files |= kTruncate;
    if (version >= 4) wanted_.network = kTcp;
    if (version >= 5) wanted_.files |= kDeviceControl;
    if (version >= 6) wanted_.scoped = kScopes;
  }

  bool create(std::string& error) {
    // Older kernels know a shorter structure, and refuse a longer one only if its end is not zero.
    fd_ = static_cast<int>(syscall(kCreateRuleset, &wanted_, sizeof wanted_, 0));
    return fd_ >= 0 || failed(error, "landlock_create_ruleset");
  }

  // A place that is not there, or that this user cannot see, is not allowed, which is what it was anyway.
  bool allow(const std::string& path, u64 rights, std::string& error) {
    const int place = open(path.c_str(), O_PATH | O_CLOEXEC);
    if (place < 0) return true;
    struct stat facts {};
    if (fstat(place, &facts) != 0) facts.st_mode = S_IFREG;
    PathBeneath rule;
    rule.allowed = rights & wanted_.files;
    if (!S_ISDIR(facts.st_mode)) rule.allowed &= kFileRights;
    rule.parent = place;
    const long added = syscall(kAddRule, fd_, kPathBeneath, &rule, 0);
    if (added != 0) failed(error, ("landlock_add_rule " + path).c_str());
    close(place);
    return added == 0;
  }

  bool enforce(std::string& error) {
    const bool done = syscall(kRestrictSelf, fd_, 0) == 0 || failed(error, "landlock_restrict_self");
    close(fd_);
    return done;
  }

 private:
  static bool failed(std::string& error, const char* what) {
    error = std::string(what) + ": " + std::strerror(errno);
    return false;
  }

  int fd_ = -1;
  Ruleset wanted_;
};

bool allow_devices(Rules& rules, std::string& error) {
  std::error_code ignored;  // no /dev: nothing to allow
  for (const auto& entry : std::filesystem::directory_iterator("/dev", ignored))
    if (entry.path().filename().string().starts_with("nvidia"))
      if (!rules.allow(entry.path(), kDevice, error)) return false;
  return true;
}

}  // namespace

int landlock_version() {
  const long version = syscall(kCreateRuleset, nullptr, 0, kVersionFlag);
  return version < 0 ? 0 : static_cast<int>(version);
}

bool restrict_files(const std::string& library, const std::string& cache_folder, std::string& error) {
  // Kept open for good: the rule is tied to this very entry of /proc, which the kernel may otherwise forget
  // and make anew.
  static const int self = open("/proc/self", O_PATH | O_CLOEXEC);
  if (self < 0) {
    error = std::string("/proc/self: ") + std::strerror(errno);
    return false;
  }
  Rules rules(landlock_version());
  if (!rules.create(error)) return false;
  for (const Place& place : kPlaces)
    if (!rules.allow(place.path, place.rights, error)) return false;
  if (!rules.allow("/proc/self/", kRead | kWriteFile, error)) return false;
  if (!rules.allow("/proc/self/exe", kRead, error)) return false;  // the driver's application profiles
  if (!allow_devices(rules, error)) return false;
  // The driver looks for its other libraries beside the one that was loaded.
  std::error_code ignored;  // a library that cannot be resolved was not loaded either
  const std::filesystem::path real = std::filesystem::weakly_canonical(library, ignored);
  if (!real.empty() && !rules.allow(real.parent_path(), kRead, error)) return false;
  if (!cache_folder.empty() && !rules.allow(cache_folder, kScratch, error)) return false;
  return rules.enforce(error);
}

bool deny_files(std::string& error) {
  Rules rules(landlock_version());
  return rules.create(error) && rules.enforce(error);
}

}  // namespace gpupool::worker
