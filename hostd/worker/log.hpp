// The worker's log: one key=value line an event on stderr, which hostd's journal collects. Text that came
// from a client is escaped, and repeated client mistakes are counted instead of printed each time.
#pragma once

#include <string_view>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

enum class LogLevel { debug, info, warning, error };

// Sets the lowest level that is shown and the session id that every line carries.
void configure_log(LogLevel lowest, u64 session_id);
// `message` is ours; `detail` may hold anything and is escaped and cut at 500 bytes.
void log(LogLevel level, std::string_view message, std::string_view detail = {});

// Ends this process at once: the kernel gives everything the session held on the GPU back. The message is
// logged.
[[noreturn]] void end_session(int exit_code, std::string_view message, std::string_view detail = {});

inline constexpr int kExitClientGone = 0;
inline constexpr int kExitUsage = 64;     // sysexits.h
inline constexpr int kExitProtocol = 76;  // the client broke the protocol
inline constexpr int kExitDriver = 69;    // the driver cannot be used

}  // namespace gpupool::worker
