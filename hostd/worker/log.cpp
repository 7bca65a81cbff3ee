#include "hostd/worker/log.hpp"

#include <unistd.h>

#include <cstdio>
#include <string>

namespace gpupool::worker {
namespace {

LogLevel g_lowest = LogLevel::info;
u64 g_session = 0;

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

void append_escaped(std::string& line, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text.substr(0, 500)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\') {
      line += c;
    } else {
      line += "\\x";
      line += kHex[byte >> 4];
      line += kHex[byte & 15];
    }
  }
}

}  // namespace

void configure_log(LogLevel lowest, u64 session_id) {
  g_lowest = lowest;
  g_session = session_id;
}

void log(LogLevel level, std::string_view message, std::string_view detail) {
  if (level < g_lowest) return;
  std::string line = "level=";
  line += name_of(level);
  line +=
      " part=worker session=" + std::to_string(g_session) + " pid=" + std::to_string(getpid()) + " msg=\"";
  append_escaped(line, message);
  line += '"';
  if (!detail.empty()) {
    line += " detail=\"";
    append_escaped(line, detail);
    line += '"';
  }
  line += '\n';
  // One write a line; a closed stderr has nowhere to report to.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void end_session(int exit_code, std::string_view message, std::string_view detail) {
  log(exit_code == 0 ? LogLevel::info : LogLevel::error, message, detail);
  _exit(exit_code);
}

}  // namespace gpupool::worker
