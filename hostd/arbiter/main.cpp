// gpupool-arbiter: says whose turn it is on one GPU (docs/shares.md).
//
// Started by hostd for a GPU on which somebody has a share; outlives hostd, and is found again by its file
// `arbiter.pid`, which it holds locked: there is never a second one for a GPU. Ends by itself when no session
// has been listed for a while. It touches no GPU: it reads the quota page and writes into the sessions' lease
// pages.
#include <fcntl.h>
#include <getopt.h>
#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>

#include "hostd/arbiter/desk.hpp"
#include "hostd/arbiter/turns.hpp"
#include "hostd/beside/process.hpp"
#include "hostd/beside/rights.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/sandbox.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::arbiter {
namespace {

using worker::log;
using worker::LogLevel;

using beside::kExitSetup;
constexpr u64 kPageBytes = 4096;

volatile std::sig_atomic_t g_stop = 0;

struct Options {
  std::string folder;
  u64 idle_ns = 10'000'000'000;
  worker::LogStyle log{.part = "arbiter"};
  bool calls = false;
};

bool parse(int argc, char** argv, Options& options) {
  enum { kFolder = 1, kIdle, kJson, kPriorities, kCalls };
  static constexpr option kOptions[] = {{"folder", required_argument, nullptr, kFolder},
                                        {"idle-s", required_argument, nullptr, kIdle},
                                        {"log-json", required_argument, nullptr, kJson},
                                        {"log-priorities", required_argument, nullptr, kPriorities},
                                        {"sandbox-calls", required_argument, nullptr, kCalls},
                                        {nullptr, 0, nullptr, 0}};
  for (int found; (found = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    const bool yes = optarg != nullptr && std::strcmp(optarg, "yes") == 0;
    if (found == '?') return false;
    if (found == kFolder) options.folder = optarg;
    if (found == kIdle) options.idle_ns = std::strtoull(optarg, nullptr, 10) * 1'000'000'000;
    if (found == kJson) options.log.json = yes;
    if (found == kPriorities) options.log.priorities = yes;
    if (found == kCalls) options.calls = yes;
  }
  return !options.folder.empty() && options.idle_ns != 0;
}

// A worker has cut its page short. From here on it is a page of our own, which says nothing. Only what a
// signal handler may do.
void page_is_gone(int, siginfo_t* info, void*) {
  void* page = reinterpret_cast<void*>(reinterpret_cast<u64>(info->si_addr) & ~(kPageBytes - 1));
  if (mmap(page, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
    _exit(kExitSetup);
}

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { g_stop = 1; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  action.sa_handler = nullptr;
  action.sa_sigaction = page_is_gone;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

// Root's rights are not needed for what comes.
bool give_up_rights(const Options& options, std::string& error) {
  if (!beside::drop_rights(error)) return false;
  worker::SandboxOptions sandbox;
  if (options.calls) sandbox.calls = worker::CallFilter::end;
  return worker::enter_sandbox(sandbox, "", error);
}

void serve(Desk& desk, u64 idle_ns) {
  Turns turns;
  u64 used_ns = wire::monotonic_ns();
  while (g_stop == 0) {
    u64 now = wire::monotonic_ns();
    if (desk.refresh()) {
      turns.set_sessions(desk.tenants(), desk.sessions(), now);
      log(LogLevel::info, turns.scheduler().arbitrates() ? "leases in turn" : "leases open",
          "vgpus=" + std::to_string(desk.tenants().size()));
    }
    u64 look = turns.step(now, desk.listen());
    desk.tell(turns, now);
    while (look <= now) {
      now = wire::monotonic_ns();
      look = turns.step(now, desk.listen());
      desk.tell(turns, now);
    }
    if (desk.has_sessions()) used_ns = now;
    if (now - used_ns >= idle_ns) return;
    desk.wait(look - now);
  }
  desk.leave();
}

int run(const Options& options) {
  const int folder = open(options.folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) {
    log(LogLevel::error, "cannot open the GPU's folder", options.folder + ": " + std::strerror(errno));
    return kExitSetup;
  }
  if (const int failed = beside::take_place(folder, "arbiter.pid"); failed != 0) return failed;
  catch_signals();
  Desk desk(folder);
  std::string error;
  if (!desk.open(error) || !give_up_rights(options, error)) {
    log(LogLevel::error, "the arbiter cannot start", error);
    return kExitSetup;
  }
  log(LogLevel::info, "arbiter started", options.folder);
  serve(desk, options.idle_ns);
  log(LogLevel::info, "arbiter ended", options.folder);
  return 0;
}

}  // namespace
}  // namespace gpupool::arbiter

int main(int argc, char** argv) {
  using namespace gpupool;
  arbiter::Options options;
  const bool understood = arbiter::parse(argc, argv, options);
  if (const int failed = beside::begin("gpupool-arbiter", understood, options.log); failed != 0)
    return failed;
  return arbiter::run(options);
}
