// Lines for the person who runs the program: on stderr, prefixed, rare. GPUPOOL_LOG=debug shows more, =off
// nothing.
#pragma once

namespace gpupool::guest {

// One line, printf-style, without a newline. For what a user must know.
void log_line(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The same, shown only with GPUPOOL_LOG=debug.
void log_debug(const char* format, ...) __attribute__((format(printf, 1, 2)));
// With GPUPOOL_LOG=debug: a driver call that did not succeed, and its CUresult. Cold: off the path of calls
// that do.
void log_failure(const char* name, int result) __attribute__((cold));
// Says once per function that the program called something that is not forwarded.
void log_unsupported(const char* name);

}  // namespace gpupool::guest
