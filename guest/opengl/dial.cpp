#include "guest/opengl/dial.hpp"

#include <sys/mman.h>
#include <sys/socket.h>

#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/machine_window.hpp"
#include "wire/cpp/byte_rings.hpp"
#include "wire/cpp/stream_io.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest::opengl {
namespace {

constexpr int kDialTimeoutSeconds = 10;
constexpr int kWelcomeTimeoutSeconds = 120;  // a driver's first start on a busy host
constexpr u32 kMostWaitSeconds = 7 * 86400;
constexpr u64 kAnyBase = 0x2000'0000'0000;  // there is no window; the place only has to be one
constexpr u32 kHardPolicy = 1;              // SharePolicy::hard of hostd/pages/quota_page.hpp

bool make_hello(wire::TransportKind kind, const Program& program, wire::Hello& hello, std::string& why) {
  hello.bytes = sizeof hello;
  hello.transport = kind;
  hello.kind = wire::SessionKind::opengl;
  hello.window_base = kAnyBase;
  hello.pid = program.pid;
  std::memcpy(hello.program, program.name, sizeof hello.program);
  std::strncpy(hello.client_version, wire::kVersion, sizeof hello.client_version - 1);
  const char* policy = std::getenv("GPUPOOL_POLICY");
  if (policy != nullptr && std::strcmp(policy, "hard") == 0) hello.policy = kHardPolicy;
  return read_token(hello.token, why) && read_vgpu(hello.vgpu, why) &&
         read_number("GPUPOOL_COMPUTE_PERCENT", 100, hello.compute_percent, why) &&
         read_number("GPUPOOL_MEMORY_MIB", 1u << 24, hello.memory_mib, why) &&
         read_number("GPUPOOL_WAIT_S", kMostWaitSeconds, hello.wait_s, why);
}

// In a virtual machine that has a window its descriptor, and in the Hello its size: an offer that the host
// may take up. Without it all bytes go through vsock, as the user is told once; false where that must not be.
bool offer_window(const Endpoint& endpoint, MachineWindow& machine, wire::Hello& hello, std::string& why) {
  const char* named = transport_name(wire::TransportKind::window);
  const bool must = endpoint.wanted_transport == named;
  const bool wanted = endpoint.wanted_transport.empty() || must;
  if (endpoint.kind != wire::TransportKind::vsock || !wanted) return true;
  std::string reason = "guest.toml names no window_socket";
  if (!endpoint.window_socket.empty() && fetch_machine_window(endpoint.window_socket, machine, reason)) {
    hello.window_bits = static_cast<u16>(std::bit_width(machine.bytes) - 1);
    return true;
  }
  if (must)
    why = "transport window was asked for: " + reason;
  else if (!endpoint.window_socket.empty())
    log_line("%s; OpenGL of this program goes through vsock", reason.c_str());
  return !must;
}

bool map_slot(u64 bytes, u64 offset, const MachineWindow& machine, Session& session, std::string& why) {
  if (bytes < wire::kByteRingsBytes || bytes > machine.bytes || offset % 4096 != 0 ||
      offset > machine.bytes - bytes) {
    why = "the host answered with an impossible place in the window";
    return false;
  }
  void* mapped =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine.fd.get(), static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    why = std::string("cannot map the machine's window: ") + std::strerror(errno);
    return false;
  }
  session.slot = static_cast<u8*>(mapped);
  session.slot_bytes = bytes;
  return true;
}

bool receive_welcome(int fd, const wire::Hello& hello, const MachineWindow& machine, Session& session,
                     std::string& why) {
  set_timeout(fd, SO_RCVTIMEO, kWelcomeTimeoutSeconds + static_cast<int>(hello.wait_s));
  wire::Welcome welcome;
  do {
    if (!wire::read_all(fd, &welcome, sizeof welcome)) {
      why = "the host closed the connection before it answered; its log says why";
      return false;
    }
    if (welcome.magic != wire::kWelcomeMagic) {
      why = "the peer is not a gpupool host";
      return false;
    }
    welcome.text[sizeof welcome.text - 1] = 0;
    if (welcome.status == wire::WelcomeStatus::waiting) log_line("%s", welcome.text);
  } while (welcome.status == wire::WelcomeStatus::waiting);
  if (welcome.status != wire::WelcomeStatus::ok) {
    why = welcome.text;
    return false;
  }
  wire::WelcomeWindow place;
  const bool in_window = hello.window_bits != 0 && welcome.bytes == sizeof welcome + sizeof place;
  if (in_window && !wire::read_all(fd, &place, sizeof place)) {
    why = "the host closed the connection while it answered; its log says why";
    return false;
  }
  set_timeout(fd, SO_RCVTIMEO, 0);
  set_timeout(fd, SO_SNDTIMEO, 0);
  if (in_window) return map_slot(welcome.window_bytes, place.offset, machine, session, why);
  if (welcome.window_bytes == 0) return true;
  why = "the host knows no OpenGL; update gpupool there";
  return false;
}

// False with `refused` when a host has said no, which another one is not asked after.
bool dial_endpoint(const Endpoint& endpoint, const Program& program, Session& session, std::string& why,
                   bool& refused) {
  wire::Hello hello;
  MachineWindow machine;
  if (!check_transport(endpoint, why) || !make_hello(endpoint.kind, program, hello, why) ||
      !offer_window(endpoint, machine, hello, why))
    return false;
  std::vector<Descriptor> dialled;
  dialled.emplace_back(dial_socket(endpoint, kDialTimeoutSeconds, why));
  if (dialled.front().get() < 0) return false;
  refused = true;
  if (endpoint.kind == wire::TransportKind::tls) {
    session.secured = std::make_unique<Secured>();
    if (!session.secured->start(endpoint, dialled, kDialTimeoutSeconds, why)) return false;
  }
  const int fd = dialled.front().get();
  // A host that refuses may have closed already: its answer is there to be read all the same.
  static_cast<void>(send_all(fd, &hello, sizeof hello));
  if (!receive_welcome(fd, hello, machine, session, why)) return false;
  const bool must = endpoint.wanted_transport == transport_name(wire::TransportKind::window);
  if (hello.window_bits != 0 && session.slot == nullptr) {
    constexpr char kNoneLeft[] = "the machine's window has no room left for OpenGL";
    if (must)
      why = std::string("transport window was asked for: ") + kNoneLeft;
    else
      log_line("%s; this program's goes through vsock", kNoneLeft);
    if (must) return false;
  }
  session.socket.reset(dialled.front().release());
  session.shared = endpoint.kind == wire::TransportKind::shm;
  return true;
}

}  // namespace

bool dial(const Program& program, Session& session, std::string& why) {
  std::vector<Endpoint> endpoints;
  if (!candidates(endpoints, why)) return false;
  for (const Endpoint& endpoint : endpoints) {
    bool refused = false;
    if (dial_endpoint(endpoint, program, session, why, refused)) return true;
    if (refused) return false;
  }
  return false;
}

}  // namespace gpupool::guest::opengl
