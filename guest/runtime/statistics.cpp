#include "guest/runtime/statistics.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "guest/runtime/log.hpp"
#include "guest/runtime/session.hpp"
#include "guest/runtime/transport/endpoint.hpp"

namespace gpupool::guest {
namespace {

std::array<std::atomic<u64>, wire::kFunctionCount> g_waits{};

// A card's name as it may stand in a JSON string.
std::string plain(const char* text, size_t most) {
  std::string name(text, strnlen(text, most));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '"' || c == '\\' || static_cast<u8>(c) < ' '; },
      ' ');
  return name;
}

// The JSON object; empty without a session (before cuInit, in a forked child).
std::string describe() {
  const Session* session = Session::current();
  if (session == nullptr || session->devices().empty()) return {};
  const wire::DeviceInfo& device = session->devices().front();
  std::string text = R"({"transport": ")" + std::string(session->transport_name()) + R"(", "device": ")" +
                     plain(device.name, sizeof device.name) + R"(", "messages": )" +
                     std::to_string(session->tickets()) + R"(, "waits": {)";
  const char* separator = "";
  for (size_t i = 0; i < g_waits.size(); ++i) {
    const u64 count = g_waits[i].load(std::memory_order_relaxed);
    if (count == 0) continue;
    text += separator;
    text += '"';
    text += wire::function_name(static_cast<wire::Function>(i));
    text += "\": " + std::to_string(count);
    separator = ", ";
  }
  text += '}';
  if (const wire::ZeroCopyTotals* sent = zero_copy_totals(); sent != nullptr)
    text += R"(, "zero_copy": {"bytes": )" + std::to_string(sent->bytes.load()) +
            R"(, "copied_after_all": )" + std::to_string(sent->late_copies.load()) + R"(, "refused": )" +
            std::to_string(sent->refused.load()) + '}';
  return text + '}';
}

void write_statistics() {
  const char* path = std::getenv("GPUPOOL_STATISTICS_FILE");
  const std::string text = describe();
  if (path == nullptr || text.empty()) return;  // unset since, or a forked child
  FILE* file = std::fopen(path, "we");
  if (file == nullptr) {
    log_line("cannot write GPUPOOL_STATISTICS_FILE %s", path);
    return;
  }
  std::fprintf(file, "%s\n", text.c_str());
  std::fclose(file);
}

size_t snapshot(char* out, size_t capacity) {
  const std::string text = describe();
  if (out != nullptr && capacity != 0) {
    const size_t size = std::min(text.size(), capacity - 1);
    std::memcpy(out, text.data(), size);
    out[size] = '\0';
  }
  return text.size();
}

}  // namespace

void count_wait(wire::Function function) {
  const auto index = static_cast<size_t>(function);
  if (index < g_waits.size()) g_waits[index].fetch_add(1, std::memory_order_relaxed);
}

void arrange_statistics() {
  if (std::getenv("GPUPOOL_STATISTICS_FILE") != nullptr) std::atexit(&write_statistics);
}

const void* const* statistics_table() {
  static const std::array<const void*, 2> table = {reinterpret_cast<const void*>(sizeof table),
                                                   reinterpret_cast<const void*>(&snapshot)};
  return table.data();
}

}  // namespace gpupool::guest
