#include "hostd/worker/sandbox.hpp"

#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "hostd/worker/log.hpp"

namespace gpupool::worker {
namespace {

constexpr rlim_t kOpenFiles = 65536;  // eight GPUs take some hundreds

bool failed(std::string& error, const char* what) {
  error = std::string(what) + ": " + std::strerror(errno);
  return false;
}

void lower(__rlimit_resource resource, rlim_t most) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0) return;
  limit.rlim_max = std::min(limit.rlim_max, most);
  limit.rlim_cur = std::min(limit.rlim_cur, limit.rlim_max);
  setrlimit(resource, &limit);  // lowering cannot be refused
}

}  // namespace

void close_other_descriptors(const std::vector<int>& kept) {
  std::vector<int> sorted;
  for (const int fd : kept)
    if (fd > STDERR_FILENO) sorted.push_back(fd);
  std::ranges::sort(sorted);
  auto next = static_cast<unsigned>(STDERR_FILENO + 1);
  // close_range is Linux 5.9; on older kernels hostd's own closing (it passes only these) has to do.
  for (const int fd : sorted) {
    const auto here = static_cast<unsigned>(fd);
    if (here > next) syscall(SYS_close_range, next, here - 1, 0);
    next = here + 1;
  }
  syscall(SYS_close_range, next, ~0u, 0);
}

bool become_user(const SandboxOptions& options, std::string& error) {
  if (options.user == 0) return true;
  // What root may do without asking and its successor may not: lock as much memory as the driver wants.
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  setrlimit(RLIMIT_MEMLOCK, &unlimited);
  std::vector<gid_t> groups(options.groups.begin(), options.groups.end());
  if (setgroups(groups.size(), groups.data()) != 0) return failed(error, "setgroups");
  if (setresgid(options.group, options.group, options.group) != 0) return failed(error, "setresgid");
  if (setresuid(options.user, options.user, options.user) != 0) return failed(error, "setresuid");
  if (setuid(0) == 0) {
    error = "root could be had back";
    return false;
  }
  // The kernel took it away with the user id; the driver's initialisation may look at /proc/self. It is taken
  // away again before the client's first byte.
  prctl(PR_SET_DUMPABLE, 1);
  return true;
}

bool enter_sandbox(const SandboxOptions& options, const std::string& library, std::string& error) {
  lower(RLIMIT_CORE, 0);
  lower(RLIMIT_NOFILE, kOpenFiles);
  // Counted per user: only where the user is this session's own, which is when hostd says a number.
  if (options.threads != 0) lower(RLIMIT_NPROC, options.threads);
  if (options.calls == CallFilter::off && !options.files) return true;
  // Others of the same user may neither trace us nor read our memory (ptrace(2), proc(5)).
  if (prctl(PR_SET_DUMPABLE, 0) != 0) return failed(error, "PR_SET_DUMPABLE");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed(error, "PR_SET_NO_NEW_PRIVS");
  if (options.files && !restrict_files(library, options.cache_folder, error)) return false;
  if (options.calls == CallFilter::off) return true;
  return restrict_calls(options.calls == CallFilter::end, error);
}

int probe_sandbox() {
  std::string error;
  const int files = landlock_version();
  const bool privileges = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
  const bool landlock = files > 0 && restrict_files("/usr/lib/libcuda.so.1", "", error);
  // Asked for real: a container's own filter can forbid what the kernel has.
  const bool seccomp =
      privileges && restrict_calls(false, error) && socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM;
  std::printf("{\"seccomp\": %s, \"landlock\": %d}\n", seccomp ? "true" : "false", landlock ? files : 0);
  return std::fflush(stdout) == 0 ? 0 : kExitUsage;
}

}  // namespace gpupool::worker
