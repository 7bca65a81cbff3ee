// The sandbox for real: each case enters it in a child process and looks at what is left.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "hostd/worker/log.hpp"
#include "hostd/worker/sandbox.hpp"

namespace {

using namespace gpupool;
using worker::CallFilter;
using worker::SandboxOptions;

constexpr int kEntered = 90;  // exit codes of the children: could not enter, an expectation was wrong
constexpr int kWrong = 91;

struct Outcome {
  int exit_code = -1;  // negative: the signal
  std::string log;
};

// Runs `inside` in a child that has entered the sandbox. False from it is an error of the test.
Outcome locked_in(const SandboxOptions& options, const std::function<bool()>& inside) {
  int pipe_ends[2];
  REQUIRE(pipe(pipe_ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    worker::configure_log({}, 7);
    std::string error;
    if (!become_user(options, error) || !enter_sandbox(options, "/usr/lib/libcuda.so.1", error)) {
      [[maybe_unused]] const auto written = write(STDERR_FILENO, error.data(), error.size());
      _exit(kEntered);
    }
    _exit(inside() ? 0 : kWrong);
  }
  close(pipe_ends[1]);
  Outcome outcome;
  char buffer[4096];
  for (ssize_t got; (got = read(pipe_ends[0], buffer, sizeof buffer)) > 0;)
    outcome.log.append(buffer, static_cast<size_t>(got));
  close(pipe_ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return outcome;
}

SandboxOptions calls(CallFilter filter) {
  SandboxOptions options;
  options.calls = filter;
  return options;
}

bool refused(long result) {
  return result == -1 && errno == EPERM;
}

TEST_CASE("sandbox: a refused call is named, and ends the process") {
  const Outcome outcome = locked_in(calls(CallFilter::end), [] {
    socket(AF_INET, SOCK_STREAM, 0);
    return false;
  });
  CHECK(outcome.exit_code == worker::kExitSandbox);
  CHECK(outcome.log.find("system call 41 refused by the sandbox") != std::string::npos);
  CHECK(outcome.log.find("session=7") != std::string::npos);
}

TEST_CASE("sandbox: what nobody may do any more") {
  const Outcome outcome = locked_in(calls(CallFilter::report), [] {
    char* const none[] = {nullptr};
    iovec piece{};
    bool all =
        refused(execve("/bin/true", none, none)) && refused(syscall(SYS_execveat, -1, "", none, none, 0));
    all = all && refused(syscall(SYS_fork)) && refused(syscall(SYS_vfork));
    all = all && refused(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    all = all && refused(syscall(SYS_clone, 0x1000'0000 | SIGCHLD, 0, 0, 0, 0));  // CLONE_NEWUSER
    all = all && syscall(SYS_clone3, nullptr, 0) == -1 && errno == ENOSYS;
    all = all && refused(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr));
    all = all && refused(process_vm_readv(getppid(), &piece, 1, &piece, 1, 0));
    all = all && refused(syscall(SYS_unshare, 0)) && refused(syscall(SYS_setns, -1, 0));
    all = all && refused(syscall(SYS_mount, 0, 0, 0, 0, 0)) && refused(syscall(SYS_bpf, 0, 0, 0));
    all = all && refused(syscall(SYS_keyctl, 0, 0, 0, 0, 0)) &&
          refused(syscall(SYS_perf_event_open, 0, 0, 0, 0, 0));
    all = all && refused(syscall(SYS_userfaultfd, 0)) && refused(syscall(SYS_open_by_handle_at, 0, 0, 0));
    all = all && refused(syscall(SYS_init_module, 0, 0, 0)) && refused(syscall(SYS_kexec_load, 0, 0, 0, 0));
    all = all && refused(syscall(SYS_io_uring_setup, 0, 0)) && refused(syscall(SYS_pidfd_getfd, 0, 0, 0));
    all = all && refused(socket(AF_INET, SOCK_STREAM, 0)) && refused(socket(AF_UNIX, SOCK_DGRAM, 0));
    all = all && refused(connect(0, nullptr, 0)) && refused(bind(0, nullptr, 0)) && refused(listen(0, 1));
    all = all && refused(sendto(0, "", 0, MSG_FASTOPEN, nullptr, 0));
    all = all && refused(kill(getppid(), 0)) && refused(prctl(PR_SET_DUMPABLE, 1));
    all = all && refused(prctl(PR_SET_SECCOMP, 0)) && refused(syscall(SYS_setuid, 0));
    all = all && refused(ioctl(0, 0x5412, "x"));               // TIOCSTI
    return all && refused(syscall(0x4000'0000 | SYS_getpid));  // x32
  });
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.log);
  CHECK(outcome.log.find("system call 59 refused") != std::string::npos);
}

TEST_CASE("sandbox: what goes on working") {
  const Outcome outcome = locked_in(calls(CallFilter::end), [] {
    int from_thread = 0;
    std::thread([&] { from_thread = 3; }).join();
    void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool mapped = memory != MAP_FAILED && mprotect(memory, 4096, PROT_READ | PROT_EXEC) == 0;
    const int file = open("/proc/self/status", O_RDONLY);
    int pair[2];
    const bool paired = socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && send(pair[0], "x", 1, 0) == 1;
    rlimit core{};
    getrlimit(RLIMIT_CORE, &core);
    return from_thread == 3 && mapped && file >= 0 && paired && core.rlim_max == 0 &&
           std::getenv("PATH") != nullptr;
  });
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.log);
}

TEST_CASE("sandbox: the filter also holds in threads that exist") {
  const Outcome outcome = locked_in({}, [] {
    int order[2];
    int result[2];
    if (pipe(order) != 0 || pipe(result) != 0) return false;
    std::thread([&] {
      char byte = 0;
      [[maybe_unused]] auto done = read(order[0], &byte, 1);
      byte = refused(socket(AF_INET, SOCK_STREAM, 0)) ? 'y' : 'n';
      done = write(result[1], &byte, 1);
    }).detach();
    std::string error;
    if (!enter_sandbox(calls(CallFilter::report), "", error)) return false;
    char answer = 0;
    return write(order[1], "x", 1) == 1 && read(result[0], &answer, 1) == 1 && answer == 'y';
  });
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.log);
}

TEST_CASE("sandbox: files outside a driver's are closed") {
  if (worker::landlock_version() == 0) {
    MESSAGE("this kernel has no Landlock");
    return;
  }
  char folder[] = "/tmp/gpupool-sandbox-XXXXXX";
  REQUIRE(mkdtemp(folder) != nullptr);
  SandboxOptions options;
  options.files = true;
  options.cache_folder = std::string(folder) + "/cache";
  std::filesystem::create_directory(options.cache_folder);
  const std::string outside = std::string(folder) + "/secret";
  close(open(outside.c_str(), O_CREAT | O_WRONLY, 0600));
  const Outcome outcome = locked_in(options, [&] {
    const auto denied = [](const char* path, int flags) {
      return open(path, flags, 0600) == -1 && errno == EACCES;
    };
    const auto opens = [](const char* path, int flags) { return open(path, flags, 0600) >= 0; };
    const std::string cached = options.cache_folder + "/entry";
    bool all = denied(outside.c_str(), O_RDONLY) && denied("/etc/passwd", O_RDONLY);
    all = all && denied("/proc/1/stat", O_RDONLY) && denied("/usr/new", O_CREAT | O_WRONLY);
    all = all && unlink(outside.c_str()) == -1 && errno == EACCES;
    all = all && opens("/proc/self/maps", O_RDONLY) && opens("/proc/self/exe", O_RDONLY);
    all = all && opens("/sys/devices/system/cpu/online", O_RDONLY) && opens("/dev/null", O_RDWR);
    all = all && opens(cached.c_str(), O_CREAT | O_WRONLY) && unlink(cached.c_str()) == 0;
    return all && opens("/usr/bin/env", O_RDONLY);
  });
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.log);
  std::filesystem::remove_all(folder);
}

TEST_CASE("sandbox: no file at all") {
  if (worker::landlock_version() == 0) return;  // Linux 5.13
  const Outcome outcome = locked_in({}, [] {
    const int before = open("/usr", O_RDONLY | O_DIRECTORY);
    std::string error;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || !worker::deny_files(error)) return false;
    bool all = before >= 0 && fcntl(before, F_GETFD) >= 0;  // what is open stays open
    for (const char* path : {"/usr", "/etc/passwd", "/dev/null", "/proc/self/maps"})
      all = all && open(path, O_RDONLY) < 0 && errno == EACCES;
    return all && open("/dev/shm/gpupool-test-denied", O_RDWR | O_CREAT, 0600) < 0 && errno == EACCES &&
           openat(before, "lib", O_RDONLY) < 0;
  });
  CHECK(outcome.exit_code == 0);
}

TEST_CASE("sandbox: root is given up for good") {
  if (geteuid() != 0) {
    MESSAGE("only root can become another user");
    return;
  }
  SandboxOptions options;
  options.user = options.group = 1'900'000'001;
  options.groups = {1'900'000'002};
  const Outcome outcome = locked_in(options, [] {
    gid_t groups[4];
    return getuid() == 1'900'000'001 && geteuid() == 1'900'000'001 && getgid() == 1'900'000'001 &&
           getgroups(4, groups) == 1 && groups[0] == 1'900'000'002 && setuid(0) == -1 &&
           open("/etc/shadow", O_RDONLY) == -1;
  });
  CHECK_MESSAGE(outcome.exit_code == 0, outcome.log);
}

TEST_CASE("sandbox: other descriptors are closed") {
  const Outcome outcome = locked_in({}, [] {
    const int kept = open("/dev/null", O_RDONLY);
    const int other = open("/dev/null", O_RDONLY);
    worker::close_other_descriptors({-1, kept});
    return fcntl(kept, F_GETFD) >= 0 && fcntl(other, F_GETFD) == -1 && fcntl(STDERR_FILENO, F_GETFD) >= 0;
  });
  CHECK(outcome.exit_code == 0);
}

}  // namespace
