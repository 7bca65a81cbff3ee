#include "guest/runtime/log.hpp"

#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

#include "guest/runtime/log_listener.hpp"

namespace gpupool::guest {
namespace {

LogListener g_listener;

enum class Level { off, normal, debug };

Level level() {
  static const Level chosen = [] {
    const char* value = std::getenv("GPUPOOL_LOG");
    if (value == nullptr) return Level::normal;
    if (std::strcmp(value, "off") == 0) return Level::off;
    return std::strcmp(value, "debug") == 0 ? Level::debug : Level::normal;
  }();
  return chosen;
}

// Also for cuLogs*. One write() a line, so that lines of several processes do not mix.
void write_line(const char* format, va_list arguments, bool shown, bool kept) {
  char line[1024];
  int used = std::snprintf(line, sizeof line, "gpupool: ");
  const int body =
      std::vsnprintf(line + used, sizeof line - static_cast<size_t>(used) - 1, format, arguments);
  if (body < 0) return;
  used += body;
  if (used > static_cast<int>(sizeof line) - 2) used = static_cast<int>(sizeof line) - 2;
  constexpr int kPrefix = 9;  // "gpupool: "
  if (kept && g_listener.line != nullptr)
    g_listener.line(line + kPrefix, static_cast<size_t>(used - kPrefix));
  if (!shown) return;
  line[used++] = '\n';
  // A closed stderr is the program's choice; there is nowhere else to say it.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line, static_cast<size_t>(used));
}

}  // namespace

bool listen_to_log(const LogListener& listener) {
  g_listener = listener;
  return true;
}

void log_line(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  write_line(format, arguments, level() != Level::off, true);
  va_end(arguments);
}

void log_debug(const char* format, ...) {
  if (level() != Level::debug) return;
  va_list arguments;
  va_start(arguments, format);
  write_line(format, arguments, true, false);
  va_end(arguments);
}

void log_failure(const char* name, int result) {
  constexpr int kNotReady = 600;  // CUDA_ERROR_NOT_READY is an answer, and polled for
  if (result == kNotReady) return;
  if (g_listener.failure != nullptr) g_listener.failure(name, result);
  log_debug("%s returned %d", name, result);
}

void log_unsupported(const char* name) {
  static std::mutex mutex;
  static auto& seen = *new std::set<std::string>();  // exit handlers may still log
  const std::lock_guard lock(mutex);
  if (seen.insert(name).second) log_line("%s is not forwarded; the program was told NOT_SUPPORTED", name);
}

}  // namespace gpupool::guest
