#include "guest/opengl/dial.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "guest/runtime/log.hpp"
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

bool receive_welcome(int fd, u32 wait_s, std::string& why) {
  set_timeout(fd, SO_RCVTIMEO, kWelcomeTimeoutSeconds + static_cast<int>(wait_s));
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
  set_timeout(fd, SO_RCVTIMEO, 0);
  set_timeout(fd, SO_SNDTIMEO, 0);
  if (welcome.status != wire::WelcomeStatus::ok) {
    why = welcome.text;
    return false;
  }
  if (welcome.window_bytes == 0) return true;
  why = "the host knows no OpenGL; update gpupool there";
  return false;
}

// False with `refused` when a host has said no, which another one is not asked after.
bool dial_endpoint(const Endpoint& endpoint, const Program& program, Session& session, std::string& why,
                   bool& refused) {
  wire::Hello hello;
  if (!check_transport(endpoint, why) || !make_hello(endpoint.kind, program, hello, why)) return false;
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
  if (!receive_welcome(fd, hello.wait_s, why)) return false;
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
