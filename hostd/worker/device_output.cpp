#include "hostd/worker/device_output.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "hostd/worker/log.hpp"

// Where a sanitizer reports; absent without one.
extern "C" __attribute__((weak)) void __sanitizer_set_report_fd(void* fd);

namespace gpupool::worker {
namespace {

constexpr size_t kMaxPrinted =
    16u << 20;  // the driver's own buffer has 1 MiB unless the program asks for more
constexpr size_t kMaxAssertions = 64u << 10;  // every thread of a grid may fail
constexpr u32 kMaxLoggedLines = 200;          // of standard error, a session

struct Output {
  std::mutex mutex;
  int printed_fd = -1;
  int error_fd = -1;
  std::string printed;
  std::string assertions;
  std::string line;  // of standard error, as far as it has come
  u64 lost = 0;
  u32 logged = 0;
};

Output& output() {
  static auto& all = *new Output();  // its thread ends with the process
  return all;
}

// "file:line: function: block: [0,0,0], thread: [0,0,0] Assertion `x` failed." (CUDA Programming Guide,
// "Assertion").
bool is_assertion(const std::string& line) {
  return line.find(": block: [") != std::string::npos && line.find("Assertion `") != std::string::npos;
}

void take_line(Output& all) {
  if (is_assertion(all.line)) {
    if (all.assertions.size() + all.line.size() < kMaxAssertions) all.assertions += all.line + '\n';
  } else if (!all.line.empty() && all.logged < kMaxLoggedLines) {
    ++all.logged;
    log(LogLevel::warning, "standard error", all.line);
  }
  all.line.clear();
}

void take_errors(Output& all, const char* data, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    if (data[i] == '\n')
      take_line(all);
    else if (all.line.size() < 4096)
      all.line += data[i];
  }
}

// Reads what is there, without waiting. With the lock held, so that whoever has it knows of everything
// written before.
void read_all(Output& all) {
  char buffer[16384];
  while (true) {
    const ssize_t got = read(all.printed_fd, buffer, sizeof buffer);
    if (got <= 0) break;
    all.printed.append(buffer, static_cast<size_t>(got));
    if (all.printed.size() <= kMaxPrinted) continue;
    const size_t surplus = all.printed.size() - kMaxPrinted / 2;
    all.printed.erase(0, surplus);
    if (all.lost == 0)
      log(LogLevel::warning, "a kernel prints more than the client takes: the oldest is lost");
    all.lost += surplus;
  }
  while (true) {
    const ssize_t got = read(all.error_fd, buffer, sizeof buffer);
    if (got <= 0) break;
    take_errors(all, buffer, static_cast<size_t>(got));
  }
}

void read_loop() {
  Output& all = output();
  while (true) {
    pollfd ends[2] = {{all.printed_fd, POLLIN, 0}, {all.error_fd, POLLIN, 0}};
    if (poll(ends, 2, -1) <= 0) continue;                             // interrupted
    if (((ends[0].revents | ends[1].revents) & POLLIN) == 0) return;  // nobody holds the other ends any more
    const std::lock_guard lock(all.mutex);
    read_all(all);
  }
}

// Makes `fd` the writing end of a new pipe; its reading end, or -1.
int replace(int fd) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return -1;
  const bool good = dup2(ends[1], fd) == fd;
  close(ends[1]);
  // Only our end: the driver must wait when the pipe is full, not fail.
  if (good && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0) return ends[0];
  close(ends[0]);
  return -1;
}

}  // namespace

void capture_output() {
  const int log_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  if (log_fd < 0) return log(LogLevel::error, "what kernels print goes to this log", std::strerror(errno));
  use_log_descriptor(log_fd);
  if (__sanitizer_set_report_fd != nullptr)
    __sanitizer_set_report_fd(reinterpret_cast<void*>(static_cast<intptr_t>(log_fd)));
  Output& all = output();
  all.printed_fd = replace(STDOUT_FILENO);
  all.error_fd = replace(STDERR_FILENO);
  if (all.printed_fd < 0 || all.error_fd < 0)
    log(LogLevel::error, "what kernels print is lost: no pipe", std::strerror(errno));
  else
    std::thread(read_loop).detach();
}

bool take_printed(u64 limit, std::string& out) {
  std::fflush(stdout);  // the driver may have used it
  Output& all = output();
  const std::lock_guard lock(all.mutex);
  if (all.printed_fd >= 0) read_all(all);
  const size_t taken = std::min<size_t>(all.printed.size(), limit);
  out.assign(all.printed, 0, taken);
  all.printed.erase(0, taken);
  return !all.printed.empty();
}

std::string take_assertions() {
  std::fflush(stderr);
  Output& all = output();
  const std::lock_guard lock(all.mutex);
  if (all.printed_fd >= 0) read_all(all);
  return std::exchange(all.assertions, {});
}

void wait_for_assertions(const DriverApi& driver, CUcontext context) {
  auto done = std::make_shared<std::promise<void>>();  // the thread may outlive this call
  std::future<void> waited = done->get_future();
  std::thread([&driver, context, done] {
    if (driver.cuCtxSetCurrent(context) == CUDA_SUCCESS) driver.cuCtxSynchronize();
    done->set_value();
  }).detach();
  waited.wait_for(std::chrono::milliseconds(500));
}

void publish_fault_output(const wire::Window& window) {
  wire::FaultOutput& place = window.fault_output();
  std::string printed;
  const std::string assertions = take_assertions();
  take_printed(wire::kFaultTextBytes - assertions.size(), printed);
  std::memcpy(place.text, printed.data(), printed.size());
  std::memcpy(place.text + printed.size(), assertions.data(), assertions.size());
  place.printed_bytes = static_cast<u32>(printed.size());
  place.error_bytes = static_cast<u32>(assertions.size());
}

void drain_standard_error() {
  Output& all = output();
  // Whoever ends the session may be holding the lock itself.
  const std::unique_lock lock(all.mutex, std::try_to_lock);
  if (lock.owns_lock() && all.error_fd >= 0) read_all(all);
}

}  // namespace gpupool::worker
