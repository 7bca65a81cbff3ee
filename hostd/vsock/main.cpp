// gpupool-vsock: the vhost-user-vsock device of one VM (docs/vms.md).
//
// Started by hostd when the VM is prepared; outlives hostd, because QEMU does not begin anew with a device
// that has gone. Found again by its file `relay.pid`, which it holds locked: there is never a second one for
// a VM. Ends when QEMU has gone and either hostd has said so (SIGTERM) or the VM's folder is gone.
#include <fcntl.h>
#include <getopt.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>

#include "hostd/beside/process.hpp"
#include "hostd/beside/rights.hpp"
#include "hostd/vsock/relay.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/sandbox.hpp"

namespace gpupool::vsock {
namespace {

using worker::log;
using worker::LogLevel;

constexpr int kExitMemory = 12;  // the guest's memory went away while it was looked at
using beside::kExitSetup;
constexpr int kExitLost = 15;  // it cannot go on
constexpr u64 kFirstCid = 3;   // 0 to 2 are the hypervisor, the guest itself and the host
constexpr u64 kLastCid = 0xffff'fffe;
constexpr int kBacklog = 128;

struct Options {
  std::string folder;
  std::string group;  // of cgroups; empty: hostd's
  u64 cid = 0;
  worker::LogStyle log{.part = "vsock"};
  worker::SandboxOptions sandbox;
  bool deny_files = false;
};

bool parse_number(const char* text, u64 most, u64& number) {
  char* end = nullptr;
  errno = 0;
  number = std::strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && *end == 0 && errno == 0 && number <= most;
}

bool parse(int argc, char** argv, Options& options) {
  enum { kFolder = 1, kCid, kJson, kPriorities, kCalls, kFiles, kGroup };
  static constexpr option kOptions[] = {{"folder", required_argument, nullptr, kFolder},
                                        {"cid", required_argument, nullptr, kCid},
                                        {"log-json", required_argument, nullptr, kJson},
                                        {"log-priorities", required_argument, nullptr, kPriorities},
                                        {"sandbox-calls", required_argument, nullptr, kCalls},
                                        {"sandbox-files", required_argument, nullptr, kFiles},
                                        {"group", required_argument, nullptr, kGroup},
                                        {nullptr, 0, nullptr, 0}};
  for (int found; (found = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    if (found == '?') return false;
    const bool yes = std::strcmp(optarg, "yes") == 0;
    if (found == kFolder) options.folder = optarg;
    if (found == kCid && !parse_number(optarg, kLastCid, options.cid)) return false;
    if (found == kJson) options.log.json = yes;
    if (found == kPriorities) options.log.priorities = yes;
    if (found == kCalls && yes) options.sandbox.calls = worker::CallFilter::end;
    if (found == kFiles) options.deny_files = yes;
    if (found == kGroup) options.group = optarg;
  }
  while (options.folder.size() > 1 && options.folder.back() == '/') options.folder.pop_back();
  return options.folder.starts_with('/') && options.cid >= kFirstCid;
}

// QEMU has cut its file short. Nothing can be done with the rest: what the guest says and hears is gone. The
// log allocates, which a handler may not; but this signal comes from a touch of the guest's memory, and the
// allocator touches none.
void memory_is_gone(int, siginfo_t*, void*) {
  log(LogLevel::error, "the guest's memory has gone while it was used; the relay ends");
  _exit(kExitMemory);
}

bool failed(std::string& error, const std::string& what) {
  error = what + ": " + std::strerror(errno);
  return false;
}

// Before the connector is started, which so is in it as well. By itself, as hostd could only do it later.
void join_group(const std::string& group) {
  if (group.empty()) return;
  const Descriptor processes(::open((group + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  if (!processes || write(processes.get(), "0", 1) != 1)  // cgroups(7): whoever writes it
    log(LogLevel::error, "the relay is not in its cgroup", group + ": " + std::strerror(errno));
}

// A listening socket of that name in the working folder. One of the folder's group may connect where `group`.
bool listen_at(const char* name, bool group, Descriptor& listener, std::string& error) {
  listener.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, name, sizeof address.sun_path - 1);
  struct stat folder {};
  unlink(name);  // of a relay before this one: nobody else may write here
  const mode_t before = umask(0177);
  const bool bound = bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  umask(before);
  if (!bound || stat(".", &folder) != 0) return failed(error, name);
  // Before the mode: hostd, which waits for that, then knows that nobody is refused.
  if (listen(listener.get(), kBacklog) != 0) return failed(error, name);
  // QEMU runs as another user, in the group that the folder belongs to.
  if (group && folder.st_gid != getegid() && lchown(name, static_cast<uid_t>(-1), folder.st_gid) != 0)
    return failed(error, std::string("chown ") + name);
  return !group || chmod(name, 0660) == 0 || failed(error, std::string("chmod ") + name);
}

bool open_all(const Options& options, Openings& made, std::string& error) {
  if (!listen_at("vsock", false, made.host, error)) return false;
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigprocmask(SIG_BLOCK, &ends, nullptr);
  made.signals.reset(signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!made.signals) return failed(error, "signalfd");
  // The folder's own end is not told while we have it open: that of its name in the folder above is.
  const std::string above = options.folder.substr(0, std::max<size_t>(options.folder.rfind('/'), 1));
  made.changes.reset(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!made.changes || inotify_add_watch(made.changes.get(), above.c_str(), IN_DELETE | IN_ONLYDIR) < 0)
    return failed(error, "inotify " + above);
  if (!made.connector.start(error)) return false;
  // Last: whoever finds it finds a relay that serves.
  return listen_at("vhost", true, made.qemu, error);
}

int run(const Options& options) {
  Openings openings;
  openings.folder.reset(::open(options.folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // From here on by names in it: paths of unix sockets are short (unix(7)).
  if (!openings.folder || fchdir(openings.folder.get()) != 0) {
    log(LogLevel::error, "cannot open the VM's folder", options.folder + ": " + std::strerror(errno));
    return kExitSetup;
  }
  if (const int failed_with = beside::take_place(openings.folder.get(), "relay.pid"); failed_with != 0)
    return failed_with;
  join_group(options.group);
  struct sigaction action {};
  action.sa_sigaction = memory_is_gone;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
  std::string error;
  const bool opened = open_all(options, openings, error);
  Relay relay(options.cid, std::move(openings));
  // Windows of other VMs are files, too, and this user's own where hostd is root: it opens none from here on.
  if (!opened || !relay.open(error) || !beside::drop_rights(error) ||
      (options.deny_files && !worker::deny_files(error)) ||
      !worker::enter_sandbox(options.sandbox, "", error)) {
    log(LogLevel::error, "the relay cannot start", error);
    return kExitSetup;
  }
  log(LogLevel::info, "relay started", options.folder + ", cid=" + std::to_string(options.cid));
  const bool ended = relay.run();
  log(LogLevel::info, "relay ended", options.folder);
  return ended ? 0 : kExitLost;
}

}  // namespace
}  // namespace gpupool::vsock

int main(int argc, char** argv) {
  using namespace gpupool;
  vsock::Options options;
  const bool understood = vsock::parse(argc, argv, options);
  if (const int failed = beside::begin("gpupool-vsock", understood, options.log); failed != 0) return failed;
  return vsock::run(options);
}
