// Saying Hello and reading Welcome.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "guest/runtime/transport/machine_window.hpp"
#include "guest/runtime/transport/secure.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "wire/cpp/descriptor_passing.hpp"
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
constexpr u64 kPage = 4096;
constexpr const char* kNoneLeft =
    "the host gives this program no piece of the machine's window (other programs have all of it, or the "
    "host's log says why)";

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
    int received = -1;
    const ssize_t count =
        wire::receive_with_descriptor(fd, static_cast<u8*>(data) + got, size - got, received, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      why = count == 0 ? "the host closed the connection before it answered; its log says why"
                       : std::string("no answer from the host: ") + std::strerror(errno);
      return false;
    }
    if (received >= 0) window_fd.reset(received);
    got += static_cast<size_t>(count);
  }
  return true;
}

// A Welcome and what follows it.
struct Answer {
  wire::Welcome welcome;
  size_t lanes = 0;        // so many are used
  bool in_window = false;  // the session has a piece of the machine's window...
  u64 window_offset = 0;   // ... there
  Descriptor window_fd;    // on one machine
};

// While there is no room yet for a client that would wait for it, the host says so and where it stands, and
// again when that has changed.
bool receive_welcome(int fd, const wire::Hello& hello, Answer& answer, std::string& why) {
  wire::Welcome& welcome = answer.welcome;
  set_timeout(fd, SO_RCVTIMEO, kWelcomeTimeoutSeconds + static_cast<int>(hello.wait_s));
  while (true) {
    if (!receive(fd, &welcome, sizeof welcome, answer.window_fd, why)) return false;
    if (welcome.magic != wire::kWelcomeMagic || welcome.status != wire::WelcomeStatus::waiting) break;
    log_line("%.*s", static_cast<int>(strnlen(welcome.text, sizeof welcome.text)), welcome.text);
  }
  const bool ok = welcome.magic == wire::kWelcomeMagic && welcome.status == wire::WelcomeStatus::ok;
  const size_t more = ok ? welcome.bytes - sizeof welcome : 0;
  wire::WelcomeLanes lanes;
  wire::WelcomeWindow window;
  const bool has_lanes = more == sizeof lanes || more == sizeof lanes + sizeof window;
  answer.in_window = more == sizeof window || more == sizeof lanes + sizeof window;
  if (has_lanes && !receive(fd, &lanes, sizeof lanes, answer.window_fd, why)) return false;
  if (answer.in_window && !receive(fd, &window, sizeof window, answer.window_fd, why)) return false;
  set_timeout(fd, SO_RCVTIMEO, 0);
  set_timeout(fd, SO_SNDTIMEO, 0);
  answer.lanes = lanes.count;
  answer.window_offset = window.offset;
  const bool asked_window = hello.window_bits != 0;
  if (welcome.magic == wire::kWelcomeMagic && lanes.count <= hello.lanes &&
      (asked_window || !answer.in_window))
    return true;
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

bool must_use_window(const Endpoint& endpoint) {
  return endpoint.wanted_transport == transport_name(wire::TransportKind::window);
}

// The machine has a window and this program has no part in it: says so once, and goes on over vsock if it
// may.
bool without_window(const Endpoint& endpoint, const std::string& reason, std::string& why) {
  if (must_use_window(endpoint)) {
    why = "transport window was asked for: " + reason;
    return false;
  }
  log_line("%s; all data of this program goes through vsock", reason.c_str());
  return true;
}

// What the host said of the window, and of the piece of the machine's window, can be.
bool check_window(const Answer& answer, const MachineWindow& machine, std::string& why) {
  const wire::Welcome& welcome = answer.welcome;
  const bool possible = welcome.window_bytes >= wire::kWindowMinBytes &&
                        welcome.window_bytes <= wire::kWindowBaseStep && welcome.device_count <= 16;
  const bool inside =
      !answer.in_window || (answer.window_offset % kPage == 0 && answer.window_offset <= machine.bytes &&
                            welcome.window_bytes <= machine.bytes - answer.window_offset);
  if (!possible || !inside) why = "the host answered with an impossible window size";
  return possible && inside;
}

std::unique_ptr<Transport> make_transport(const Endpoint& endpoint, std::vector<Descriptor>& dialled,
                                          std::unique_ptr<Secured> secured, Answer& answer,
                                          const MachineWindow& machine, wire::Window window,
                                          std::string& why) {
  if (answer.in_window)
    return make_machine_window(dialled.front().release(), dup(machine.fd.get()), answer.window_offset, window,
                               why);
  std::vector<int> sockets;
  for (size_t i = 0; i <= answer.lanes; ++i) sockets.push_back(dialled[i].release());
  if (endpoint.kind == wire::TransportKind::shm)
    return make_shared_memory(sockets.front(), answer.window_fd.release(), window, why);
  return make_stream(sockets, std::move(secured), transport_name(endpoint.kind), window, why);
}

Attempt attempt(const Endpoint& endpoint, wire::Hello hello, const MachineWindow& machine, u8* base,
                Connection& connection, std::string& why, bool& refused) {
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
  Answer answer;
  if (!send_all(fd, &hello, sizeof hello))
    why = "the host closed the connection: " + std::string(std::strerror(errno));
  if (!receive_welcome(fd, hello, answer, why)) return Attempt::failed;
  const wire::Welcome& welcome = connection.welcome = answer.welcome;
  if (welcome.status == wire::WelcomeStatus::base_taken) return Attempt::next_base;
  if (welcome.status != wire::WelcomeStatus::ok) {
    refused = true;
    why.assign(welcome.text, strnlen(welcome.text, sizeof welcome.text));
    return Attempt::failed;
  }
  if (!check_window(answer, machine, why)) return Attempt::failed;
  if (hello.window_bits != 0 && !answer.in_window && !without_window(endpoint, kNoneLeft, why))
    return Attempt::failed;
  connection.window = wire::Window{base, welcome.window_bytes};
  connection.transport =
      make_transport(endpoint, dialled, std::move(secured), answer, machine, connection.window, why);
  return connection.transport == nullptr ? Attempt::failed : Attempt::connected;
}

// Of a virtual machine that has a window; false where it must be used and cannot be.
bool look_for_window(const Endpoint& endpoint, MachineWindow& machine, wire::Hello& hello, std::string& why) {
  const bool wanted = endpoint.wanted_transport.empty() || must_use_window(endpoint);
  if (endpoint.kind != wire::TransportKind::vsock || !wanted) return true;
  std::string reason = "guest.toml names no window_socket";
  if (endpoint.window_socket.empty())
    return !must_use_window(endpoint) || without_window(endpoint, reason, why);
  if (!fetch_machine_window(endpoint.window_socket, machine, reason))
    return without_window(endpoint, reason, why);
  hello.window_bits = static_cast<u16>(std::bit_width(machine.bytes) - 1);
  return true;
}

bool dial_endpoint(const Endpoint& endpoint, Connection& connection, std::string& why, bool& refused) {
  wire::Hello hello;
  MachineWindow machine;
  if (!check_transport(endpoint, why) || !make_hello(endpoint.kind, hello, why) ||
      !look_for_window(endpoint, machine, hello, why))
    return false;
  for (u32 i = 0; i < wire::kWindowBaseTries; ++i) {
    u8* base = reserve(wire::kWindowBase + i * wire::kWindowBaseStep);
    if (base == nullptr) continue;
    const Attempt result = attempt(endpoint, hello, machine, base, connection, why, refused);
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
