// Saying Hello and reading Welcome.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "guest/runtime/transport/secure.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest {
namespace {

constexpr int kDialTimeoutSeconds = 10;
// A cold worker initialises the driver first; 64 of them at once on few cores take a while.
constexpr int kWelcomeTimeoutSeconds = 120;
// Connections of a session over TCP: four carried 64 MiB three times as fast as one (docs/data-plane.md).
constexpr u32 kTcpConnections = 4;
constexpr u32 kHardPolicy =
    1;  // SharePolicy::hard of hostd/pages/quota_page.hpp, which guests do not include
constexpr u32 kMostWaitSeconds = 7 * 86400;

// vsock has one queue a virtual machine whatever the connections, so there it is one unless asked for.
bool choose_lanes(wire::TransportKind kind, wire::Hello& hello, std::string& why) {
  if (kind == wire::TransportKind::shm) return true;
  u32 connections = kind == wire::TransportKind::vsock ? 1 : kTcpConnections;
  if (!read_number("GPUPOOL_TCP_CONNECTIONS", wire::kMaxLanes + 1, connections, why)) return false;
  hello.lanes = connections - 1;
  return true;
}

bool read_policy(u32& policy, std::string& why) {
  const char* text = std::getenv("GPUPOOL_POLICY");
  if (text == nullptr || *text == 0 || std::strcmp(text, "elastic") == 0) return true;
  if (std::strcmp(text, "hard") == 0) {
    policy = kHardPolicy;
    return true;
  }
  why = std::string("GPUPOOL_POLICY is '") + text + "'; it must be elastic or hard";
  return false;
}

bool make_hello(wire::TransportKind kind, wire::Hello& hello, std::string& why) {
  hello.bytes = sizeof hello;
  hello.transport = kind;
  hello.pid = static_cast<u32>(getpid());
  hello.cuda_version = wire::kCudaVersion;
  std::strncpy(hello.client_version, wire::kVersion, sizeof hello.client_version - 1);
  read_program_name(hello.program);
  return read_token(hello.token, why) && choose_lanes(kind, hello, why) &&
         read_number("GPUPOOL_COMPUTE_PERCENT", 100, hello.compute_percent, why) &&
         read_number("GPUPOOL_MEMORY_MIB", 1u << 24, hello.memory_mib, why) &&
         read_policy(hello.policy, why) && read_vgpu(hello.vgpu, why) &&
         read_number("GPUPOOL_WAIT_S", kMostWaitSeconds, hello.wait_s, why);
}

// Fills `data`; `window_fd` receives the descriptor that comes with it, if one does.
bool receive(int fd, void* data, size_t size, Descriptor& window_fd, std::string& why) {
  size_t got = 0;
  while (got < size) {
    iovec piece{static_cast<u8*>(data) + got, size - got};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t count = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      why = count == 0 ? "the host closed the connection before it answered; its log says why"
                       : std::string("no answer from the host: ") + std::strerror(errno);
      return false;
    }
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header), sizeof received);
      window_fd.reset(received);
    }
    got += static_cast<size_t>(count);
  }
  return true;
}

// Reads the Welcome, and how many of the `lanes` that were asked for are used. While there is no room yet for
// a client that would wait for it, the host says so and where it stands, and again when that has changed.
bool receive_welcome(int fd, u32 wait_s, wire::Welcome& welcome, size_t& lanes, Descriptor& window_fd,
                     std::string& why) {
  set_timeout(fd, SO_RCVTIMEO, kWelcomeTimeoutSeconds + static_cast<int>(wait_s));
  while (true) {
    if (!receive(fd, &welcome, sizeof welcome, window_fd, why)) return false;
    if (welcome.magic != wire::kWelcomeMagic || welcome.status != wire::WelcomeStatus::waiting) break;
    log_line("%.*s", static_cast<int>(strnlen(welcome.text, sizeof welcome.text)), welcome.text);
  }
  wire::WelcomeLanes granted;
  const bool follows = welcome.magic == wire::kWelcomeMagic && welcome.status == wire::WelcomeStatus::ok &&
                       welcome.bytes == sizeof welcome + sizeof granted;
  if (follows && !receive(fd, &granted, sizeof granted, window_fd, why)) return false;
  set_timeout(fd, SO_RCVTIMEO, 0);
  set_timeout(fd, SO_SNDTIMEO, 0);
  if (welcome.magic == wire::kWelcomeMagic && granted.count <= lanes) {
    lanes = granted.count;
    return true;
  }
  why = "the peer is not a gpupool host";
  return false;
}

// Holds a candidate range for the window so that nothing else lands there. Null when it is occupied.
u8* reserve(u64 base) {
  void* wanted = reinterpret_cast<void*>(base);
  void* got = mmap(wanted, wire::kWindowBaseStep, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got == MAP_FAILED) return nullptr;
  if (got == wanted) return static_cast<u8*>(got);
  munmap(got, wire::kWindowBaseStep);  // a kernel before 4.17 takes the address as a hint
  return nullptr;
}

enum class Attempt { connected, next_base, failed };

Attempt attempt(const Endpoint& endpoint, wire::Hello hello, u8* base, Connection& connection,
                std::string& why, bool& refused) {
  std::unique_ptr<Secured> secured;  // outlives the sockets, whose end ends its threads
  std::vector<Descriptor> dialled;   // the main connection, then the lanes
  dialled.emplace_back(dial_socket(endpoint, kDialTimeoutSeconds, why));
  if (dialled.front().get() < 0) return Attempt::failed;
  if (!dial_lanes(kDialTimeoutSeconds, hello.lanes, dialled, why)) return Attempt::failed;
  if (endpoint.kind == wire::TransportKind::tls) {
    secured = std::make_unique<Secured>();
    if (!secured->start(endpoint, dialled, kDialTimeoutSeconds, why)) return Attempt::failed;
  }
  if (!introduce_lanes(dialled, hello, why)) return Attempt::failed;
  const int fd = dialled.front().get();
  hello.window_base = reinterpret_cast<u64>(base);
  Descriptor window_fd;
  size_t used_lanes = dialled.size() - 1;
  if (!send_all(fd, &hello, sizeof hello))
    why = "the host closed the connection: " + std::string(std::strerror(errno));
  if (!receive_welcome(fd, hello.wait_s, connection.welcome, used_lanes, window_fd, why))
    return Attempt::failed;
  const wire::Welcome& welcome = connection.welcome;
  if (welcome.status == wire::WelcomeStatus::base_taken) return Attempt::next_base;
  if (welcome.status != wire::WelcomeStatus::ok) {
    refused = true;
    why.assign(welcome.text, strnlen(welcome.text, sizeof welcome.text));
    return Attempt::failed;
  }
  if (welcome.window_bytes < wire::kWindowMinBytes || welcome.window_bytes > wire::kWindowBaseStep ||
      welcome.device_count > 16) {
    why = "the host answered with an impossible window size";
    return Attempt::failed;
  }
  connection.window = wire::Window{base, welcome.window_bytes};
  const bool shared = endpoint.kind == wire::TransportKind::shm;
  std::vector<int> sockets;
  for (size_t i = 0; i <= used_lanes; ++i) sockets.push_back(dialled[i].release());
  connection.transport =
      shared
          ? make_shared_memory(sockets.front(), window_fd.release(), connection.window, why)
          : make_stream(sockets, std::move(secured), transport_name(endpoint.kind), connection.window, why);
  return connection.transport == nullptr ? Attempt::failed : Attempt::connected;
}

bool dial_endpoint(const Endpoint& endpoint, Connection& connection, std::string& why, bool& refused) {
  wire::Hello hello;
  if (!check_transport(endpoint, why) || !make_hello(endpoint.kind, hello, why)) return false;
  for (u32 i = 0; i < wire::kWindowBaseTries; ++i) {
    u8* base = reserve(wire::kWindowBase + i * wire::kWindowBaseStep);
    if (base == nullptr) continue;
    const Attempt result = attempt(endpoint, hello, base, connection, why, refused);
    if (result == Attempt::connected) return true;
    munmap(base, wire::kWindowBaseStep);
    if (result == Attempt::failed) return false;
  }
  why = "no common free address range of 64 GiB was found in this program and the worker";
  return false;
}

}  // namespace

bool dial(Connection& connection, std::string& why, bool& refused) {
  refused = false;
  std::vector<Endpoint> endpoints;
  if (!candidates(endpoints, why)) return false;
  for (const Endpoint& endpoint : endpoints) {
    if (dial_endpoint(endpoint, connection, why, refused)) {
      log_debug("connected to %s over %s", endpoint.text.c_str(), connection.transport->name());
      return true;
    }
    if (refused) return false;
  }
  return false;
}

}  // namespace gpupool::guest
