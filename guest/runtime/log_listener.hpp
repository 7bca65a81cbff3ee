// Who else hears what our runtime says and which calls have failed: cuLogs* (manual/logs.cpp). The NVML
// library logs with the same code and has no listener.
#pragma once

#include <cstddef>

namespace gpupool::guest {

struct LogListener {
  void (*line)(const char* text, size_t size) = nullptr;
  void (*failure)(const char* function, int result) = nullptr;  // a call that did not succeed
};

// For one static initialiser, before any thread of ours or call of the program's.
bool listen_to_log(const LogListener& listener);

}  // namespace gpupool::guest
