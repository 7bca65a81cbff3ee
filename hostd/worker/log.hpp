// The worker's log: one line an event, key=value or JSON, on what was stderr at the start, which hostd's
// journal collects. Text that came from a client is escaped, and repeated client mistakes are counted instead
// of printed each time.
#pragma once

#include <string_view>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

enum class LogLevel { debug, info, warning, error };

// How lines look: as hostd's own do (hostd/log.py).
struct LogStyle {
  LogLevel lowest = LogLevel::info;
  bool json = false;
  bool priorities = false;  // "<6>" in front, for journald (sd-daemon(3))
  const char* part = "worker";
};

// Sets the style and the session id that every line carries.
void configure_log(const LogStyle& style, u64 session_id);
// Where lines go from now on; standard error until then.
void use_log_descriptor(int fd);
int log_descriptor();
// `message` is ours; `detail` may hold anything and is escaped and cut at 500 bytes.
void log(LogLevel level, std::string_view message, std::string_view detail = {});

// For the handler of a refused system call: allocates nothing, takes no lock.
void log_refused_call(int number);
// Likewise for the handler of a crash; `text` needs no escaping.
void log_crash(const char* text, size_t size);

// Ends this process at once: the kernel gives everything the session held on the GPU back. The message is
// logged.
[[noreturn]] void end_session(int exit_code, std::string_view message, std::string_view detail = {});

inline constexpr int kExitClientGone = 0;
inline constexpr int kExitUsage = 64;     // sysexits.h
inline constexpr int kExitProtocol = 76;  // the client broke the protocol
inline constexpr int kExitDriver = 69;    // the driver cannot be used
inline constexpr int kExitSandbox =
    77;  // a system call that the sandbox refuses; hostd/core/ports.py knows it

}  // namespace gpupool::worker
