#include "hostd/worker/log.hpp"

#include <sys/uio.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <string>

#include "hostd/worker/device_output.hpp"

namespace gpupool::worker {
namespace {

LogStyle g_style;
u64 g_session = 0;
int g_descriptor = STDERR_FILENO;
// What a line about a refused call says before and after the number: made in time, since the handler may not
// allocate.
// A line whose text comes from a signal handler: made beforehand, around a '#'. Empty until configure_log().
struct PreparedLine {
  std::string before, after;
};
PreparedLine g_refused, g_crashed;  // NOLINT: empty strings, whose constructors cannot throw

const char* name_of(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return "debug";
    case LogLevel::info:
      return "info";
    case LogLevel::warning:
      return "warning";
    case LogLevel::error:
      return "error";
  }
  return "error";
}

// Everything but printable ASCII as an escape. In JSON a byte is \u00XX: what came is no text, and may be no
// UTF-8.
void append_escaped(std::string& line, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text.substr(0, 500)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\') {
      line += c;
    } else {
      line += g_style.json ? "\\u00" : "\\x";
      line += kHex[byte >> 4];
      line += kHex[byte & 15];
    }
  }
}

std::string time_text() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  char text[40];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof text - length, ".%03ldZ", now.tv_nsec / 1'000'000);
  return text;
}

// journald's numbers for our levels.
std::string priority(LogLevel level) {
  static constexpr char kNumbers[] = "7643";
  if (!g_style.priorities) return {};
  return std::string("<") + kNumbers[static_cast<int>(level)] + '>';
}

class Line {
 public:
  explicit Line(LogLevel level) : text_(priority(level)) {
    if (g_style.json) text_ += '{';
  }
  void add(std::string_view name, std::string_view value, bool quoted) {
    if (!first_) text_ += g_style.json ? ", " : " ";
    first_ = false;
    if (g_style.json) text_ += '"';
    text_ += name;
    text_ += g_style.json ? "\": " : "=";
    if (quoted) text_ += '"';
    append_escaped(text_, value);
    if (quoted) text_ += '"';
  }
  std::string finish() { return text_ + (g_style.json ? "}\n" : "\n"); }

 private:
  std::string text_;
  bool first_ = true;
};

// `time` may be empty: a journal has its own.
std::string make_line(LogLevel level, const std::string& time, std::string_view message,
                      std::string_view detail) {
  Line line(level);
  if (!time.empty()) line.add("time", time, g_style.json);
  line.add("level", name_of(level), g_style.json);
  line.add("msg", message, true);
  line.add("part", g_style.part, g_style.json);
  line.add("session", std::to_string(g_session), false);
  line.add("pid", std::to_string(getpid()), false);
  if (!detail.empty()) line.add("detail", detail, true);
  return line.finish();
}

PreparedLine prepare(std::string_view message) {
  const std::string line = make_line(LogLevel::error, "", message, {});
  return {line.substr(0, line.find('#')), line.substr(line.find('#') + 1)};
}

void write_prepared(const PreparedLine& line, const char* text, size_t size) {
  if (line.before.empty()) return;  // the probe of the sandbox expects refusals, and has no log
  iovec pieces[] = {{const_cast<char*>(line.before.data()), line.before.size()},
                    {const_cast<char*>(text), size},
                    {const_cast<char*>(line.after.data()), line.after.size()}};
  [[maybe_unused]] const ssize_t written = writev(g_descriptor, pieces, 3);
}

}  // namespace

void configure_log(const LogStyle& style, u64 session_id) {
  g_style = style;
  g_session = session_id;
  g_refused = prepare("system call # refused by the sandbox");
  g_crashed = prepare("the worker crashed: #");
}

void use_log_descriptor(int fd) {
  g_descriptor = fd;
}

int log_descriptor() {
  return g_descriptor;
}

void log(LogLevel level, std::string_view message, std::string_view detail) {
  if (level < g_style.lowest) return;
  const std::string line = make_line(level, time_text(), message, detail);
  // One write a line; a closed stderr has nowhere to report to.
  [[maybe_unused]] const ssize_t written = write(g_descriptor, line.data(), line.size());
}

void log_refused_call(int number) {
  char digits[12];
  size_t first = sizeof digits;
  auto rest = static_cast<unsigned>(number);
  do {
    digits[--first] = static_cast<char>('0' + rest % 10);
    rest /= 10;
  } while (rest != 0);
  write_prepared(g_refused, digits + first, sizeof digits - first);
}

void log_crash(const char* text, size_t size) {
  write_prepared(g_crashed, text, size);
}

void end_session(int exit_code, std::string_view message, std::string_view detail) {
  drain_standard_error();
  log(exit_code == 0 ? LogLevel::info : LogLevel::error, message, detail);
  _exit(exit_code);
}

}  // namespace gpupool::worker
