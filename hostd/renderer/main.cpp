// gpupool-renderer: serves the OpenGL of one client on one host, from Welcome to the client's end.
//
// Started by hostd as a worker is, with the same command line (hostd/worker/options.hpp). The client's end is
// gpupool-opengl (guest/opengl): over a unix socket it hands over the program's own socket behind the Welcome
// and steps aside; over any other transport it carries the program's bytes.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "hostd/renderer/session.hpp"
#include "hostd/renderer/turn.hpp"
#include "hostd/renderer/virgl.hpp"
#include "hostd/renderer/window.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/options.hpp"
#include "hostd/worker/sandbox.hpp"
#include "hostd/worker/usage_page.hpp"
#include "hostd/worker/vgpu_memory.hpp"
#include "wire/cpp/descriptor_passing.hpp"
#include "wire/cpp/futex.hpp"
#include "wire/cpp/opengl.hpp"
#include "wire/cpp/reader.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::worker {
// The log is a worker's; here no driver's output is captured.
void drain_standard_error() {}
}  // namespace gpupool::worker

namespace gpupool::renderer {
namespace {

using worker::log;
using worker::LogLevel;
using worker::Options;

constexpr int kExitMemory = 75;  // hostd/core/ports.py knows it
constexpr int kHandOverSeconds = 20;

// Of its virtual machine's window.
bool has_slot(const Options& options) {
  return options.transport == wire::TransportKind::window;
}

void welcome(const Options& options, wire::WelcomeStatus status, const std::string& text) {
  struct {
    wire::Welcome message;
    wire::WelcomeWindow window;
  } answer;
  wire::Welcome& message = answer.message;
  const bool in_window = status == wire::WelcomeStatus::ok && has_slot(options);
  message.bytes = in_window ? sizeof answer : sizeof message;
  message.status = status;
  if (in_window) {
    message.window_bytes = options.window_bytes;
    answer.window.offset = options.window_offset;
  }
  message.session_id = options.session_id;
  message.device_count = 1;
  std::strncpy(message.text, text.c_str(), sizeof message.text - 1);
  std::strncpy(message.host_version, wire::kVersion, sizeof message.host_version - 1);
  if (send(options.socket_fd, &answer, message.bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(message.bytes))
    worker::end_session(worker::kExitClientGone, "client left before the welcome");
}

[[noreturn]] void refuse(const Options& options, const std::string& text) {
  welcome(options, wire::WelcomeStatus::worker, text);
  worker::end_session(worker::kExitDriver, "session refused", text);
}

// Where the program's user sees why, if its socket is not this one.
[[noreturn]] void end(const Options& options, Connection& connection, bool tells, int code,
                      const char* message, const std::string& detail) {
  connection.finish();
  if (tells) {
    const std::string text = std::string(message) + ": " + detail;
    static_cast<void>(send(options.socket_fd, text.data(), std::min<size_t>(text.size(), wire::kMostNotice),
                           MSG_NOSIGNAL | MSG_DONTWAIT));
  }
  worker::end_session(code, message, detail);
}

class VgpuAccount : public Account {
 public:
  explicit VgpuAccount(worker::VgpuMemory& memory, worker::UsagePage& usage)
      : memory_(memory), usage_(usage) {}
  bool reserve(u64 bytes) override { return memory_.reserve(bytes) && publish(); }
  void give_back(u64 bytes) override {
    memory_.give_back(bytes);
    publish();
  }

 private:
  bool publish() {
    usage_.device[0].memory_bytes.store(memory_.own_bytes(), std::memory_order_relaxed);
    return true;
  }
  worker::VgpuMemory& memory_;
  worker::UsagePage& usage_;
};

// What hostd's metrics and NVML in the guest show: whether there was anything to do, in samples of 20 ms.
class Figures {
 public:
  explicit Figures(worker::UsagePage& page) : page_(page) {}

  void note(bool busy, const Tally& tally) {
    const u64 now = wire::monotonic_ns();
    auto& device = page_.device[0];
    const u64 slot = now / worker::UsagePage::kSampleNs;
    const u64 before = device.slot.load(std::memory_order_relaxed);
    if (busy == busy_ && slot == before) return;
    const u64 passed = slot - before;
    u64 samples = passed >= 64 ? 0 : device.samples.load(std::memory_order_relaxed) << passed;
    if (busy_) samples |= passed >= 64 ? ~u64{0} : (u64{1} << passed) - 1;
    device.samples.store(samples | (busy ? 1 : 0), std::memory_order_relaxed);
    device.outstanding.store(busy ? 1 : 0, std::memory_order_relaxed);
    device.slot.store(slot, std::memory_order_release);
    auto& counters = page_.counters;
    counters.messages.store(tally.commands, std::memory_order_relaxed);
    counters.answers.store(tally.answers, std::memory_order_relaxed);
    counters.launches.store(tally.buffers, std::memory_order_relaxed);
    counters.to_device_bytes.store(tally.to_device_bytes, std::memory_order_relaxed);
    counters.from_device_bytes.store(tally.from_device_bytes, std::memory_order_relaxed);
    if (busy_) busy_ns_ += now - since_ns_;
    counters.busy_ns.store(busy_ns_, std::memory_order_relaxed);
    busy_ = busy;
    since_ns_ = now;
  }

 private:
  worker::UsagePage& page_;
  bool busy_ = false;
  u64 since_ns_ = 0;
  u64 busy_ns_ = 0;
};

// The program's own socket, which the relay sends behind the Welcome. -1 when it has left.
int take_over(int control) {
  const timeval timeout{kHandOverSeconds, 0};
  setsockopt(control, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  u8 byte = 0;
  int fd = -1;
  if (wire::receive_with_descriptor(control, &byte, sizeof byte, fd, 0) != sizeof byte) return -1;
  int kind = 0;
  socklen_t size = sizeof kind;
  // Anything else would not do what is expected of reads and writes here.
  const bool is_stream = getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_STREAM;
  const bool is_unix = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &kind, &size) == 0 && kind == AF_UNIX;
  if (!is_stream || !is_unix) return -1;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  return fd;
}

pages::LeasePage* map_lease(const Options& options) {
  if (options.lease_fds.empty()) return nullptr;
  void* page =
      mmap(nullptr, pages::LeasePage::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, options.lease_fds[0], 0);
  if (page == MAP_FAILED) refuse(options, std::string("cannot map a lease page: ") + std::strerror(errno));
  return static_cast<pages::LeasePage*>(page);
}

bool slot_fits(const Options& options) {
  return !has_slot(options) ||
         (options.window_fd >= 0 && options.window_offset % wire::kByteRingsPage == 0 &&
          options.window_bytes >= wire::kByteRingsBytes && options.window_bytes <= wire::kWindowBaseStep);
}

u8* map_slot(const Options& options) {
  if (!has_slot(options)) return nullptr;
  void* slot = mmap(nullptr, options.window_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, options.window_fd,
                    static_cast<off_t>(options.window_offset));
  if (slot == MAP_FAILED) refuse(options, std::string("cannot map the window: ") + std::strerror(errno));
  close(options.window_fd);
  return static_cast<u8*>(slot);
}

void map_memory(const Options& options, worker::VgpuMemory& memory) {
  std::string error;
  if (options.quota_fds.empty()) return;
  if (!worker::map_vgpu_memory(options.quota_fds[0], options.vgpu_rows[0], options.account_fds[0],
                               options.account_rows[0], memory, error))
    refuse(options, "the renderer cannot read its quota: " + error);
}

// What libraries would keep on disk is another tenant's, or nobody's, next time.
void settle_environment(const Options& options) {
  setenv("MESA_SHADER_CACHE_DISABLE", "true", 1);
  const std::string& cache = options.sandbox.cache_folder;
  setenv("__GL_SHADER_DISK_CACHE", cache.empty() ? "0" : "1", 1);
  if (!cache.empty()) setenv("__GL_SHADER_DISK_CACHE_PATH", cache.c_str(), 1);
}

[[noreturn]] void serve(const Options& options) {
  settle_environment(options);
  std::string error;
  static Display display;
  static Virgl virgl;
  if (!worker::become_user(options.sandbox, error))
    refuse(options, "the renderer cannot become another user: " + error);
  const std::string uuid = options.devices.empty() ? "" : options.devices[0];
  if (!display.open(uuid, options.library, error) || !virgl.start(display, error)) refuse(options, error);
  static worker::VgpuMemory memory;
  worker::UsagePage* usage = worker::open_usage_page(options.usage_fd, 1);
  map_memory(options, memory);
  pages::LeasePage* lease = map_lease(options);
  u8* slot = map_slot(options);
  if (!worker::enter_sandbox(options.sandbox, options.library, error))
    refuse(options, "the renderer cannot enter its sandbox: " + error);
  welcome(options, wire::WelcomeStatus::ok, "");
  const bool shared = options.transport == wire::TransportKind::shm;
  const int program = shared ? take_over(options.socket_fd) : options.socket_fd;
  if (program < 0) worker::end_session(worker::kExitClientGone, "client left before its program came");
  log(LogLevel::info, "session started", std::string("kind=opengl egl=") + display.name());

  VgpuAccount account(memory, *usage);
  Resources resources(account, options.caps.handles, options.caps.pinned_bytes);
  Figures figures(*usage);
  Session* current = nullptr;
  Stream* stream = nullptr;
  LeaseTurn turn(lease, virgl, [&] {
    if (stream->ended()) worker::end_session(worker::kExitClientGone, "session ended");
  });
  const auto when_empty = [&] { current->flush(); };
  const auto before_sleep = [&] {
    figures.note(false, current->tally());
    return turn.idle();
  };
  std::unique_ptr<Connection> connection;
  if (slot == nullptr)
    connection = std::make_unique<Connection>(program, shared, when_empty, before_sleep);
  else
    connection = std::make_unique<WindowConnection>(program, wire::ByteRings(slot, options.window_bytes),
                                                    when_empty, before_sleep);
  stream = connection.get();
  Session session(*connection, virgl, resources, turn);
  current = &session;
  try {
    while (session.serve()) figures.note(true, session.tally());
  } catch (const wire::ProtocolError& problem) {
    end(options, *connection, shared, worker::kExitProtocol, "the client broke the protocol", problem.what());
  } catch (const OutOfMemory& problem) {
    end(options, *connection, shared, kExitMemory, "the OpenGL session ends", problem.what());
  } catch (const std::exception& problem) {
    end(options, *connection, shared, worker::kExitDriver, "the session failed", problem.what());
  }
  worker::end_session(worker::kExitClientGone, "session ended");
}

}  // namespace
}  // namespace gpupool::renderer

int main(int argc, char** argv) {
  using namespace gpupool;  // main() cannot live in the namespace it belongs to
  worker::Options options;
  options.log.part = "renderer";
  std::string error;
  const bool understood = worker::parse_options(argc, argv, options, error);
  const bool fits = options.socket_fd >= 0 && options.quota_fds.size() == options.vgpu_rows.size() &&
                    options.quota_fds.size() == options.account_fds.size() &&
                    options.quota_fds.size() == options.account_rows.size() && renderer::slot_fits(options);
  if (!understood || !fits) {
    worker::log(worker::LogLevel::error, "bad command line; this program is started by hostd", error);
    return worker::kExitUsage;
  }
  worker::configure_log(options.log, options.session_id);
  std::vector<int> given = {options.socket_fd, options.usage_fd, options.client_pidfd, options.window_fd};
  for (const std::vector<int>* fds : {&options.quota_fds, &options.account_fds, &options.lease_fds})
    given.insert(given.end(), fds->begin(), fds->end());
  worker::close_other_descriptors(given);
  for (const int fd : given)
    if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
  prctl(PR_SET_NAME, "gpupool-gl");
  // A nap while a fence is waited for is as long as it says: the 50 us that Linux adds are more than a frame.
  prctl(PR_SET_TIMERSLACK, 1000);
  renderer::serve(options);
}
