#include "hostd/worker/options.hpp"

#include <getopt.h>

#include <cstdlib>
#include <cstring>

#include "wire/cpp/layout.hpp"

namespace gpupool::worker {
namespace {

constexpr u32 kMostLaunchThreads = 16;

bool parse_number(const char* text, int base, u64& value) {
  if (*text == 0 || *text == '-') return false;
  char* end = nullptr;
  value = std::strtoull(text, &end, base);
  return *end == 0;
}

bool parse_fd(const char* text, int& fd) {
  u64 value = 0;
  if (!parse_number(text, 10, value) || value > 1'000'000) return false;
  fd = static_cast<int>(value);
  return true;
}

bool parse_u32(const char* text, u32& number) {
  u64 value = 0;
  if (!parse_number(text, 10, value) || value > 0xffff'ffffu) return false;
  number = static_cast<u32>(value);
  return true;
}

struct TransportWord {
  wire::TransportKind kind;
  const char* word;
};
constexpr TransportWord kTransports[] = {{wire::TransportKind::shm, "shm"},
                                         {wire::TransportKind::tcp, "tcp"},
                                         {wire::TransportKind::tls, "tls"},
                                         {wire::TransportKind::vsock, "vsock"},
                                         {wire::TransportKind::window, "window"}};

bool parse_transport(const char* text, wire::TransportKind& kind) {
  for (const TransportWord& one : kTransports) {
    if (std::strcmp(text, one.word) != 0) continue;
    kind = one.kind;
    return true;
  }
  return false;
}

bool parse_level(const char* text, LogLevel& level) {
  static constexpr const char* kNames[] = {"debug", "info", "warning", "error"};
  for (int i = 0; i < 4; ++i)
    if (std::strcmp(text, kNames[i]) == 0) {
      level = static_cast<LogLevel>(i);
      return true;
    }
  return false;
}

bool parse_calls(const char* text, CallFilter& filter) {
  static constexpr const char* kNames[] = {"off", "report", "on"};
  for (int i = 0; i < 3; ++i)
    if (std::strcmp(text, kNames[i]) == 0) {
      filter = static_cast<CallFilter>(i);
      return true;
    }
  return false;
}

bool parse_yes(const char* text, bool& value) {
  value = std::strcmp(text, "yes") == 0;
  return value || std::strcmp(text, "no") == 0;
}

void split(const std::string& text, std::vector<std::string>& parts) {
  size_t start = 0;
  while (start <= text.size()) {
    const size_t comma = std::min(text.find(',', start), text.size());
    if (comma > start) parts.push_back(text.substr(start, comma - start));
    start = comma + 1;
  }
}

enum Option {
  kSocket = 1,
  kLaneFd,
  kAskedLanes,
  kWindowFd,
  kUsageFd,
  kPidfd,
  kExchange,
  kTransport,
  kBase,
  kBytes,
  kOffset,
  kLibrary,
  kDevices,
  kSession,
  kCompute,
  kMemory,
  kLevel,
  kLogJson,
  kLogPriorities,
  kProtocol,
  kHost,
  kCalls,
  kFiles,
  kUser,
  kGroup,
  kGroups,
  kThreads,
  kCache,
  kPinned,
  kImages,
  kHandles,
  kStreams,
  kScrub,
  kOrder,
  kContext,
  kLaunchThreads,
  kZeroCopy,
  kOpenGl,
  kQuotaFds,
  kAccountFds,
  kLeaseFds,
  kVgpuRows,
  kAccountRows
};

bool parse_mib(const char* text, u64& bytes) {
  u32 mib = 0;
  if (!parse_u32(text, mib)) return false;
  bytes = u64{mib} << 20;
  return true;
}

bool take_cap(int option, const char* text, Caps& caps) {
  switch (option) {
    case kPinned:
      return parse_mib(text, caps.pinned_bytes);
    case kImages:
      return parse_mib(text, caps.image_bytes);
    case kHandles:
      return parse_u32(text, caps.handles) && caps.handles <= kMostHandles;
    case kStreams:
      return parse_u32(text, caps.streams) && caps.streams < wire::kWords;
    case kScrub:
      return parse_yes(text, caps.scrub);
    default:
      return false;
  }
}

// Numbers between commas, in the place of those that were there.
template <class Number>
bool parse_list(const char* text, std::vector<Number>& numbers, bool (*parse)(const char*, Number&)) {
  std::vector<std::string> words;
  split(text, words);
  numbers.clear();
  for (const std::string& word : words)
    if (!parse(word.c_str(), numbers.emplace_back())) return false;
  return true;
}

bool take_vgpus(int option, const char* text, Options& options) {
  switch (option) {
    case kQuotaFds:
      return parse_list(text, options.quota_fds, parse_fd);
    case kAccountFds:
      return parse_list(text, options.account_fds, parse_fd);
    case kLeaseFds:
      return parse_list(text, options.lease_fds, parse_fd);
    case kVgpuRows:
      return parse_list(text, options.vgpu_rows, parse_u32);
    case kAccountRows:
      return parse_list(text, options.account_rows, parse_u32);
    default:
      return false;
  }
}

bool take_sandbox(int option, const char* text, SandboxOptions& sandbox) {
  switch (option) {
    case kCalls:
      return parse_calls(text, sandbox.calls);
    case kFiles:
      return parse_yes(text, sandbox.files);
    case kUser:
      return parse_u32(text, sandbox.user);
    case kGroup:
      return parse_u32(text, sandbox.group);
    case kGroups:
      return parse_list(text, sandbox.groups, parse_u32);
    case kThreads:
      return parse_u32(text, sandbox.threads);
    case kCache:
      sandbox.cache_folder = text;
      return text[0] == '/';
    default:
      return false;
  }
}

bool take(int option, const char* text, Options& options) {
  switch (option) {
    case kSocket:
      return parse_fd(text, options.socket_fd);
    case kLaneFd:
      return options.lane_fds.size() < wire::kMaxLanes && parse_fd(text, options.lane_fds.emplace_back());
    case kAskedLanes:
      return parse_u32(text, options.asked_lanes);
    case kWindowFd:
      return parse_fd(text, options.window_fd);
    case kUsageFd:
      return parse_fd(text, options.usage_fd);
    case kPidfd:
      return parse_fd(text, options.client_pidfd);
    case kExchange:
      return parse_fd(text, options.exchange_fd);
    case kTransport:
      return parse_transport(text, options.transport);
    case kBase:
      return parse_number(text, 16, options.window_base);
    case kBytes:
      return parse_number(text, 10, options.window_bytes);
    case kOffset:
      return parse_number(text, 10, options.window_offset);
    case kLibrary:
      options.library = text;
      return text[0] == '/';
    case kDevices:
      options.devices.clear();
      split(text, options.devices);
      return true;
    case kSession:
      return parse_number(text, 10, options.session_id);
    case kCompute:
      return parse_u32(text, options.compute_percent);
    case kMemory:
      return parse_u32(text, options.memory_mib);
    case kLevel:
      return parse_level(text, options.log.lowest);
    case kLogJson:
      return parse_yes(text, options.log.json);
    case kLogPriorities:
      return parse_yes(text, options.log.priorities);
    case kProtocol:
      return true;  // hostd has compared it with the client's; ours is compiled in
    case kHost:
      options.host_version = text;
      return true;
    case kOrder:
      return parse_fd(text, options.order_fd);
    case kOpenGl:
      return parse_yes(text, options.opengl);
    case kLaunchThreads:
      return parse_u32(text, options.launch_threads) && options.launch_threads <= kMostLaunchThreads;
    case kZeroCopy:
      return wire::zero_copy_mode(text, options.zero_copy);
    case kContext:
      return parse_yes(text, options.prepare_context);
    default:
      return take_vgpus(option, text, options) || take_sandbox(option, text, options.sandbox) ||
             take_cap(option, text, options.caps);
  }
}

}  // namespace

bool parse_options(int argc, char** argv, Options& options, std::string& error) {
  static constexpr option kOptions[] = {{"socket-fd", required_argument, nullptr, kSocket},
                                        {"lane-fd", required_argument, nullptr, kLaneFd},
                                        {"asked-lanes", required_argument, nullptr, kAskedLanes},
                                        {"window-fd", required_argument, nullptr, kWindowFd},
                                        {"usage-fd", required_argument, nullptr, kUsageFd},
                                        {"client-pidfd", required_argument, nullptr, kPidfd},
                                        {"exchange-fd", required_argument, nullptr, kExchange},
                                        {"transport", required_argument, nullptr, kTransport},
                                        {"window-base", required_argument, nullptr, kBase},
                                        {"window-bytes", required_argument, nullptr, kBytes},
                                        {"window-offset", required_argument, nullptr, kOffset},
                                        {"library", required_argument, nullptr, kLibrary},
                                        {"devices", required_argument, nullptr, kDevices},
                                        {"session-id", required_argument, nullptr, kSession},
                                        {"compute-percent", required_argument, nullptr, kCompute},
                                        {"memory-mib", required_argument, nullptr, kMemory},
                                        {"log-level", required_argument, nullptr, kLevel},
                                        {"log-json", required_argument, nullptr, kLogJson},
                                        {"log-priorities", required_argument, nullptr, kLogPriorities},
                                        {"sandbox-calls", required_argument, nullptr, kCalls},
                                        {"sandbox-files", required_argument, nullptr, kFiles},
                                        {"user", required_argument, nullptr, kUser},
                                        {"group", required_argument, nullptr, kGroup},
                                        {"groups", required_argument, nullptr, kGroups},
                                        {"threads", required_argument, nullptr, kThreads},
                                        {"cache-folder", required_argument, nullptr, kCache},
                                        {"pinned-mib", required_argument, nullptr, kPinned},
                                        {"image-mib", required_argument, nullptr, kImages},
                                        {"handles", required_argument, nullptr, kHandles},
                                        {"streams", required_argument, nullptr, kStreams},
                                        {"scrub", required_argument, nullptr, kScrub},
                                        {"protocol", required_argument, nullptr, kProtocol},
                                        {"host-version", required_argument, nullptr, kHost},
                                        {"order-fd", required_argument, nullptr, kOrder},
                                        {"launch-threads", required_argument, nullptr, kLaunchThreads},
                                        {"zero-copy", required_argument, nullptr, kZeroCopy},
                                        {"opengl", required_argument, nullptr, kOpenGl},
                                        {"prepare-context", required_argument, nullptr, kContext},
                                        {"quota-fds", required_argument, nullptr, kQuotaFds},
                                        {"account-fds", required_argument, nullptr, kAccountFds},
                                        {"lease-fds", required_argument, nullptr, kLeaseFds},
                                        {"vgpu-rows", required_argument, nullptr, kVgpuRows},
                                        {"account-rows", required_argument, nullptr, kAccountRows},
                                        {nullptr, 0, nullptr, 0}};
  int index = 0;
  optind = 0;  // a worker started ahead of need comes here twice
  for (int found; (found = getopt_long(argc, argv, "", kOptions, &index)) != -1;) {
    if (found == '?') {
      error = "unknown option";
      return false;
    }
    if (!take(found, optarg, options)) {
      error = std::string("--") + kOptions[index].name + " has the value '" + optarg + "'";
      return false;
    }
  }
  return true;
}

const char* transport_word(wire::TransportKind kind) {
  for (const TransportWord& one : kTransports)
    if (one.kind == kind) return one.word;
  return "unknown";
}

bool check_options(const Options& options, std::string& error) {
  for (const size_t count : {options.quota_fds.size(), options.account_fds.size(), options.lease_fds.size(),
                             options.vgpu_rows.size(), options.account_rows.size()})
    if (count != 0 && count != options.devices.size()) error = "vGPUs do not fit --devices";
  if (options.quota_fds.size() != options.account_fds.size() ||
      options.quota_fds.size() != options.vgpu_rows.size() ||
      options.quota_fds.size() != options.account_rows.size())
    error = "--quota-fds, --account-fds, --vgpu-rows and --account-rows go together";
  if (options.socket_fd < 0 || options.library.empty()) error = "--socket-fd and --library are needed";
  if (options.shares_memory() && options.window_fd < 0) error = "--window-fd is needed for shm and window";
  const bool sliced = options.transport == wire::TransportKind::window;
  if (options.window_offset % 4096 != 0 || (options.window_offset != 0 && !sliced))
    error = "--window-offset is out of range";
  if (options.window_bytes < wire::kWindowMinBytes || options.window_bytes > wire::kWindowBaseStep)
    error = "--window-bytes is out of range";
  if (options.window_base < 0x1000'0000 || options.window_base % 4096 != 0 ||
      options.window_base > 0x7000'0000'0000)
    error = "--window-base is out of range";
  return error.empty();
}

}  // namespace gpupool::worker
