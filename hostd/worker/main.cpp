// gpupool-worker: serves one client on one host, from Welcome to the client's end.
//
// Started by hostd with the client's socket, the window and a list of devices, or ahead of need with the
// devices alone. It loads the libcuda named on its command line, so that NVIDIA's and the software GPU are
// the same to it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "hostd/worker/client_watch.hpp"
#include "hostd/worker/crash.hpp"
#include "hostd/worker/device_output.hpp"
#include "hostd/worker/dispatcher.hpp"
#include "hostd/worker/launch_crew.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/context.hpp"
#include "hostd/worker/memory_account.hpp"
#include "hostd/worker/options.hpp"
#include "hostd/worker/order.hpp"
#include "hostd/worker/populate.hpp"
#include "hostd/worker/sandbox.hpp"
#include "hostd/worker/stream_mirror.hpp"
#include "hostd/worker/worker.hpp"
#include "wire/cpp/descriptor_passing.hpp"
#include "wire/cpp/futex.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::worker {
namespace {

// With this personality the driver's own allocations fall around 0x2b..., far from where an ordinary client
// maps its libraries (0x7f...), so device addresses rarely collide there. Measured on driver 580.
void use_compatible_layout(char** argv) {
  const int current = personality(0xffff'ffff);
  if (current < 0 || (current & ADDR_COMPAT_LAYOUT) != 0) return;
  if (personality(static_cast<unsigned long>(current) | ADDR_COMPAT_LAYOUT) < 0) return;
  execv("/proc/self/exe", argv);
  log(LogLevel::warning, "cannot restart with the compatible address layout", std::strerror(errno));
}

// A Welcome, and what follows it: for a client that asked for lanes, and for one that has a piece of a
// window.
void welcome(const Options& options, wire::Welcome message, int window_fd) {
  u8 answer[sizeof message + sizeof(wire::WelcomeLanes) + sizeof(wire::WelcomeWindow)];
  size_t size = sizeof message;
  const auto add = [&](const auto& part) {
    std::memcpy(answer + size, &part, sizeof part);
    size += sizeof part;
  };
  const bool ok = message.status == wire::WelcomeStatus::ok;
  if (ok && options.asked_lanes != 0) add(wire::WelcomeLanes{static_cast<u32>(options.lane_fds.size()), 0});
  if (ok && options.transport == wire::TransportKind::window)
    add(wire::WelcomeWindow{options.window_offset, 0});
  message.bytes = static_cast<u32>(size);
  std::memcpy(answer, &message, sizeof message);
  // Some 330 bytes into an empty socket buffer: one call takes them all or the client is gone.
  if (wire::send_with_descriptor(options.socket_fd, answer, size, window_fd, MSG_NOSIGNAL) !=
      static_cast<ssize_t>(size))
    end_session(kExitClientGone, "client left before the welcome");
}

[[noreturn]] void refuse(const Options& options, wire::WelcomeStatus status, const std::string& text) {
  if (options.socket_fd < 0) end_session(kExitDriver, "no worker ahead of need", text);
  wire::Welcome message;
  message.status = status;
  std::strncpy(message.text, text.c_str(), sizeof message.text - 1);
  std::strncpy(message.host_version, wire::kVersion, sizeof message.host_version - 1);
  welcome(options, message, -1);
  end_session(kExitDriver, "session refused", text);
}

void map_window(const Options& options, Worker& worker) {
  void* wanted = reinterpret_cast<void*>(options.window_base);
  const bool shared = options.shares_memory();
  const int flags = MAP_FIXED_NOREPLACE | MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  void* got = mmap(wanted, options.window_bytes, PROT_READ | PROT_WRITE, flags,
                   shared ? options.window_fd : -1, static_cast<off_t>(options.window_offset));
  if (got != wanted) {
    if (got == MAP_FAILED && errno != EEXIST)
      refuse(options, wire::WelcomeStatus::worker,
             std::string("cannot map the window: ") + std::strerror(errno));
    refuse(options, wire::WelcomeStatus::base_taken, "the window's address is taken in the worker");
  }
  worker.window = wire::Window{static_cast<u8*>(got), options.window_bytes};
  prefer_huge_pages(got, options.window_bytes);
  // The first context registers this part with the GPU: its pages are made while the driver makes the
  // context.
  std::thread([base = got] { make_pages(base, Worker::kLeftToDriver, 1); }).detach();
  worker.shared_memory = shared;
}

// What each vGPU may use and does use. Without it nothing is limited: hostd always gives it.
void map_vgpus(const Options& options, Worker& worker) {
  for (size_t i = 0; i < options.quota_fds.size() && i < worker.memory.size(); ++i) {
    std::string error;
    if (!map_vgpu_memory(options.quota_fds[i], options.vgpu_rows[i], options.account_fds[i],
                         options.account_rows[i], worker.memory[i], error))
      refuse(options, wire::WelcomeStatus::worker, "the worker cannot read its quota: " + error);
  }
  for (const std::vector<int>* fds : {&options.quota_fds, &options.account_fds})
    for (const int fd : *fds) close(fd);  // mapped
}

std::string uuid_text(const CUuuid& uuid) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    const auto byte = static_cast<unsigned char>(uuid.bytes[i]);
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

// The driver's ordinals of the devices that hostd gave this session, in hostd's order.
void choose_devices(const Options& options, Worker& worker) {
  int count = 0;
  if (worker.driver.cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0)
    refuse(options, wire::WelcomeStatus::no_device, "the host's driver finds no GPU");
  std::vector<std::pair<std::string, CUdevice>> found;
  for (int i = 0; i < count; ++i) {
    CUdevice device = 0;
    CUuuid uuid{};
    if (worker.driver.cuDeviceGet(&device, i) != CUDA_SUCCESS) continue;
    if (worker.driver.cuDeviceGetUuid_v2(&uuid, device) != CUDA_SUCCESS) continue;
    found.emplace_back(uuid_text(uuid), device);
  }
  if (options.devices.empty())
    for (const auto& [uuid, device] : found) worker.devices.push_back(device);
  for (const std::string& wanted : options.devices) {
    const size_t before = worker.devices.size();
    for (const auto& [uuid, device] : found)
      if (uuid == wanted) worker.devices.push_back(device);
    if (worker.devices.size() == before)
      refuse(options, wire::WelcomeStatus::no_device, "the host's GPU " + wanted + " is gone");
  }
  for (const CUdevice device : worker.devices) {
    int able = 0;
    if (worker.driver.cuDeviceGetAttribute(&able, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS,
                                           device) != CUDA_SUCCESS ||
        able == 0)
      worker.stream_memory_operations = false;
  }
}

int initialise_driver(const Options& options, Worker& worker) {
  std::string error;
  if (!worker.driver.load(options.library.c_str(), error))
    refuse(options, wire::WelcomeStatus::worker, "the host cannot load its libcuda: " + error);
  if (!become_user(options.sandbox, error))
    refuse(options, wire::WelcomeStatus::worker, "the worker cannot become another user: " + error);
  const CUresult started = worker.driver.cuInit(0);
  if (started != CUDA_SUCCESS)
    refuse(options, wire::WelcomeStatus::no_device,
           "the host's driver did not initialise: CUDA error " + std::to_string(started));
  int version = 0;
  worker.driver.cuDriverGetVersion(&version);
  if (version < 12040)
    refuse(options, wire::WelcomeStatus::worker,
           "the host's driver supports CUDA " + std::to_string(version / 1000) + "." +
               std::to_string(version % 1000 / 10) + "; 12.4 or later is needed");
  choose_devices(options, worker);
  return version;
}

// A client has cut short a file that it shares with us (manual/host_map.cpp). Only what a signal handler may
// do: one write and the end.
void bus_error(int) {
  static constexpr char kLine[] =
      "level=error part=worker msg=\"memory that the client shared is gone; its session ends\"\n";
  [[maybe_unused]] const ssize_t written = write(log_descriptor(), kLine, sizeof kLine - 1);
  _exit(kExitProtocol);
}

// What can be done before there is a client: the driver, and the first device's context where that was asked
// for. Returns the driver's version once the client is there.
int prepare(Options& options, int argc, char** argv, Worker& worker) {
  void* wanted = reinterpret_cast<void*>(wire::kWindowBase);
  // Where most clients' windows will be: kept free from what the driver maps meanwhile.
  void* kept = mmap(wanted, wire::kWindowBaseStep, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  const int version = initialise_driver(options, worker);
  if (options.prepare_context && !prepare_primary(worker))
    refuse(options, wire::WelcomeStatus::worker, "no context");
  Order order;
  std::string error;
  if (!receive_order(options.order_fd, order, error)) {
    if (!error.empty()) end_session(kExitUsage, "bad order; this program is started by hostd", error);
    _exit(kExitClientGone);
  }
  close(options.order_fd);
  if (kept == wanted) munmap(kept, wire::kWindowBaseStep);
  std::vector<char*> words = {argv[0]};
  for (std::string& word : order.words) words.push_back(word.data());
  words.push_back(nullptr);
  if (!parse_options(static_cast<int>(words.size()) - 1, words.data(), options, error))
    end_session(kExitUsage, "bad order; this program is started by hostd", error);
  configure_log(options.log, options.session_id);
  show_session_id(argc, argv, options.session_id);
  return version;
}

// Eight threads launch as fast as the driver lets them (H100, driver 580); each takes a core while it does.
u32 launch_threads(const Options& options) {
  if (options.launch_threads != 0) return options.launch_threads == 1 ? 0 : options.launch_threads;
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  return cores < 8 ? 0 : static_cast<u32>(std::min(cores / 2, 8L));
}

// hostd has made the pages; without one the session does not start, since it would have to do without leases.
void map_leases(const Options& options, Worker& worker) {
  for (const int fd : options.lease_fds) {
    void* page = mmap(nullptr, pages::LeasePage::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
      refuse(options, wire::WelcomeStatus::worker,
             std::string("cannot map a lease page: ") + std::strerror(errno));
    worker.leases.push_back(static_cast<pages::LeasePage*>(page));
    close(fd);  // before the client's first byte: nobody can cut the file short through it
  }
}

int serve(Options& options, int argc, char** argv) {
  // The worker outlives this function's locals by _exit(); nothing here is ever unwound.
  auto* worker = new Worker();
  int version = options.order_fd < 0 ? 0 : prepare(options, argc, argv, *worker);
  if (std::string error; !check_options(options, error))
    end_session(kExitUsage, "bad command line; this program is started by hostd", error);
  worker->exchange = Exchange(options.exchange_fd);
  worker->set_caps(options.caps);
  worker->may_use_opengl = options.opengl;
  if (const u32 threads = launch_threads(options); threads != 0)
    worker->crew = std::make_shared<LaunchCrew>(threads);
  map_window(options, *worker);
  wire::Welcome message;
  if (version == 0) version = initialise_driver(options, *worker);
  message.driver_version = static_cast<u32>(version);
  message.window_bytes = options.window_bytes;
  message.session_id = options.session_id;
  message.device_count = static_cast<u32>(worker->devices.size());
  std::strncpy(message.host_version, wire::kVersion, sizeof message.host_version - 1);
  const bool local = options.transport == wire::TransportKind::shm;
  const bool window = options.transport == wire::TransportKind::window;
  if (window) {  // what they would carry is in memory
    for (const int fd : options.lane_fds) close(fd);
    options.lane_fds.clear();
    worker->bell_socket = options.socket_fd;
  }
  worker->usage = open_usage_page(options.usage_fd, worker->devices.size());
  map_vgpus(options, *worker);
  account_memory(*worker);
  map_leases(options, *worker);
  worker->client_stopped = stopped_probe(options.client_pidfd);
  // From here on a client may have taken this process over; before it, nothing of the client's was read.
  const u64 before = wire::monotonic_ns();
  if (std::string error; !enter_sandbox(options.sandbox, options.library, error))
    refuse(options, wire::WelcomeStatus::worker, "the worker cannot enter its sandbox: " + error);
  const u64 sandbox_us = (wire::monotonic_ns() - before) / 1000;
  welcome(options, message, local ? options.window_fd : -1);
  for (const int fd : {options.window_fd, options.usage_fd})
    if (fd >= 0) close(fd);  // mapped
  if (local)
    watch_client(options.socket_fd, options.client_pidfd, worker->parcels);
  else if (window)
    watch_distant_client(options.socket_fd, worker->window);
  else
    start_stream_mirror(options.socket_fd, options.lane_fds, worker->window, options.zero_copy,
                        worker->usage);
  log(LogLevel::info, "session started",
      "transport=" + std::string(transport_word(options.transport)) + " connections=" +
          std::to_string(1 + options.lane_fds.size()) + " sandbox_us=" + std::to_string(sandbox_us));
  try {
    Dispatcher(*worker).run();
  } catch (const wire::ProtocolError& error) {
    end_session(kExitProtocol, "the client broke the protocol", error.what());
  } catch (const std::exception& error) {
    end_session(kExitProtocol, "the session failed", error.what());
  }
}

}  // namespace
}  // namespace gpupool::worker

int main(int argc, char** argv) {
  using namespace gpupool::worker;  // main() cannot live in the namespace it belongs to
  if (argc == 2 && std::strcmp(argv[1], "--probe-sandbox") == 0) return probe_sandbox();
  use_compatible_layout(argv);
  Options options;
  std::string error;
  if (!parse_options(argc, argv, options, error)) {
    log(LogLevel::error, "bad command line; this program is started by hostd", error);
    return kExitUsage;
  }
  configure_log(options.log, options.session_id);
  std::vector<int> given = {options.socket_fd,    options.window_fd,   options.usage_fd,
                            options.client_pidfd, options.exchange_fd, options.order_fd};
  for (const std::vector<int>* fds :
       {&options.lane_fds, &options.quota_fds, &options.account_fds, &options.lease_fds})
    given.insert(given.end(), fds->begin(), fds->end());
  close_other_descriptors(given);
  for (const int fd : given)
    if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
  // OpenGL is loaded late, inside the sandbox (hostd/worker/opengl), where caches on disk cannot be had: Mesa
  // would ask for the user's home over a socket. Before there are threads, since the environment has no lock.
  setenv("MESA_SHADER_CACHE_DISABLE", "true", 1);
  setenv("__GL_SHADER_DISK_CACHE", "0", 1);
  std::signal(SIGBUS, bus_error);
  report_crashes();
  capture_output();
  prctl(PR_SET_NAME, "gpupool-worker");
  return serve(options, argc, argv);
}
