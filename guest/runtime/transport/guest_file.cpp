#include "guest/runtime/transport/guest_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "guest/runtime/transport/endpoint.hpp"

namespace gpupool::guest {
namespace {

constexpr const char* kSystemPath = "/etc/gpupool/guest.toml";
constexpr size_t kMostBytes = 4096;  // three lines and some comments

// One line that holds nothing but `key = "value"`, perhaps with a comment behind it. This is the part of TOML
// that the agent writes: no escapes, no tables.
bool split_line(const std::string& line, std::string& key, std::string& value) {
  constexpr const char* kBlank = " \t";
  const size_t start = line.find_first_not_of(kBlank);
  const size_t key_end = line.find_first_of(" \t=", start);
  const size_t equals = line.find_first_not_of(kBlank, key_end);
  if (key_end == std::string::npos || equals == std::string::npos || line[equals] != '=') return false;
  const size_t open = line.find_first_not_of(kBlank, equals + 1);
  if (open == std::string::npos || line[open] != '"') return false;
  const size_t close = line.find('"', open + 1);
  if (close == std::string::npos) return false;
  const size_t rest = line.find_first_not_of(kBlank, close + 1);
  if (rest != std::string::npos && line[rest] != '#') return false;
  key = line.substr(start, key_end - start);
  value = line.substr(open + 1, close - open - 1);
  for (const char each : value)
    if (each == '\\' || static_cast<unsigned char>(each) < ' ' || each == 127) return false;
  return !value.empty();
}

std::string* field(GuestFile& file, const std::string& key) {
  if (key == "endpoint") return &file.endpoint;
  if (key == "transport") return &file.transport;
  if (key == "window_socket") return &file.window_socket;
  return nullptr;
}

// The whole file. Not a pipe or a device, which could make us wait.
bool read_text(const char* path, bool named, std::string& text, bool& found, std::string& why) {
  Descriptor fd(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  found = fd.get() >= 0;
  if (!found && errno == ENOENT && !named) return true;
  struct stat facts {};
  char data[kMostBytes + 1];
  const bool opened = found && fstat(fd.get(), &facts) == 0;
  const bool regular = opened && S_ISREG(facts.st_mode);
  const ssize_t got = regular ? read(fd.get(), data, sizeof data) : -1;
  if (got >= 0 && got <= static_cast<ssize_t>(kMostBytes)) {
    text.assign(data, static_cast<size_t>(got));
    return true;
  }
  why = std::string(path) + ": ";
  if (got >= 0)
    why += "longer than 4096 bytes";
  else
    why += opened && !regular ? "is no regular file" : std::strerror(errno);
  return false;
}

}  // namespace

bool parse_guest_file(const std::string& text, GuestFile& file, std::string& why) {
  size_t number = 0;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    const std::string line = text.substr(start, end - start);
    start = end + 1;
    ++number;
    const size_t first = line.find_first_not_of(" \t");
    if (first == std::string::npos || line[first] == '#') continue;
    std::string key, value;
    const std::string where = "line " + std::to_string(number);
    if (!split_line(line, key, value)) {
      why = where + " is not key = \"value\"";
      return false;
    }
    std::string* target = field(file, key);
    if (target == nullptr || !target->empty()) {
      why = where + (target == nullptr ? " has an unknown key" : " repeats a key") +
            "; endpoint, transport and window_socket are known, each once";
      return false;
    }
    *target = value;
  }
  if (!file.endpoint.empty()) return true;
  why = "endpoint is missing";
  return false;
}

bool read_guest_file(GuestFile& file, std::string& why) {
  const char* named = std::getenv("GPUPOOL_GUEST_CONFIG");
  const bool is_named = named != nullptr && *named != 0;
  const char* path = is_named ? named : kSystemPath;
  std::string text;
  bool found = false;
  if (!read_text(path, is_named, text, found, why)) return false;
  if (!found) return true;
  file.path = path;
  if (parse_guest_file(text, file, why)) return true;
  why = std::string(path) + ": " + why + "; the guest agent writes it (docs/vms.md)";
  return false;
}

}  // namespace gpupool::guest
