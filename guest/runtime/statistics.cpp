#include "guest/runtime/statistics.hpp"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "guest/runtime/log.hpp"
#include "guest/runtime/session.hpp"

namespace gpupool::guest {
namespace {

std::array<std::atomic<u64>, 1024> g_waits{};

void write_statistics() {
  const char* path = std::getenv("GPUPOOL_STATISTICS_FILE");
  const Session* session = Session::current();
  if (path == nullptr || session == nullptr) return;  // unset since, or a forked child
  FILE* file = std::fopen(path, "we");
  if (file == nullptr) {
    log_line("cannot write GPUPOOL_STATISTICS_FILE %s", path);
    return;
  }
  std::fprintf(
      file, "{\"transport\": \"%s\", \"device\": \"%.256s\", \"messages\": %llu, \"waits\": {",
      session->transport_name(), session->devices().front().name,
      static_cast<unsigned long long>(session->window().control().tail.load(std::memory_order_relaxed)));
  const char* separator = "";
  for (size_t i = 0; i < g_waits.size(); ++i) {
    const u64 count = g_waits[i].load(std::memory_order_relaxed);
    if (count == 0) continue;
    std::fprintf(file, "%s\"%s\": %llu", separator, wire::function_name(static_cast<wire::Function>(i)),
                 static_cast<unsigned long long>(count));
    separator = ", ";
  }
  std::fprintf(file, "}}\n");
  std::fclose(file);
}

}  // namespace

void count_wait(wire::Function function) {
  const auto index = static_cast<size_t>(function);
  if (index < g_waits.size()) g_waits[index].fetch_add(1, std::memory_order_relaxed);
}

void arrange_statistics() {
  if (std::getenv("GPUPOOL_STATISTICS_FILE") != nullptr) std::atexit(&write_statistics);
}

}  // namespace gpupool::guest
