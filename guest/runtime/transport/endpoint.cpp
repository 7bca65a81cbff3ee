#include "guest/runtime/transport/endpoint.hpp"

#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "guest/runtime/transport/guest_file.hpp"

namespace gpupool::guest {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// A whole number below 2^32 - 1, which vsock keeps for "any".
bool is_vsock_number(const std::string& text) {
  if (text.empty() || text.size() > 10 || text.find_first_not_of("0123456789") != std::string::npos)
    return false;
  return std::strtoull(text.c_str(), nullptr, 10) < 0xffff'ffff;
}

// HOST:PORT, the host perhaps in brackets.
bool split_address(const std::string& text, Endpoint& endpoint) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 >= text.size()) return false;
  endpoint.host = text.substr(0, colon);
  if (endpoint.host.size() > 2 && endpoint.host.front() == '[')
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  endpoint.port = text.substr(colon + 1);
  return true;
}

// `source` says where the text came from, for messages.
bool parse_endpoint(const std::string& text, const std::string& source, Endpoint& endpoint,
                    std::string& why) {
  endpoint.text = text;
  if (text.rfind("unix:", 0) == 0) {
    endpoint.kind = wire::TransportKind::shm;
    endpoint.path = text.substr(5);
    if (!endpoint.path.empty() && endpoint.path.size() < sizeof(sockaddr_un::sun_path)) return true;
  } else if (text.rfind("tcp://", 0) == 0) {
    endpoint.kind = wire::TransportKind::tcp;
    if (split_address(text.substr(6), endpoint)) return true;
  } else if (text.rfind("tls://", 0) == 0) {
    endpoint.kind = wire::TransportKind::tls;
    if (split_address(text.substr(6), endpoint)) return true;
  } else if (text.rfind("vsock://", 0) == 0) {
    endpoint.kind = wire::TransportKind::vsock;
    if (split_address(text.substr(8), endpoint) && is_vsock_number(endpoint.host) &&
        is_vsock_number(endpoint.port))
      return true;
  }
  why = source + " is '" + text +
        "'; it must be unix:/path/to/socket, tls://host:port, tcp://host:port or vsock://2:port (2 is a "
        "virtual "
        "machine's host)";
  return false;
}

// connect() to its end. On Linux the call may simply be made again after a signal: over a unix socket nothing
// has happened yet, over TCP it goes on waiting for the connection that is under way.
bool connect_all(int fd, const sockaddr* address, socklen_t size) {
  int result = 0;
  do result = connect(fd, address, size);
  while (result < 0 && errno == EINTR);
  return result == 0;
}

int dial_unix(const Endpoint& endpoint, int timeout_s, std::string& why) {
  Descriptor fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, endpoint.path.c_str(), endpoint.path.size() + 1);
  set_timeout(fd.get(), SO_SNDTIMEO, timeout_s);
  if (fd.get() >= 0 && connect_all(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address))
    return fd.release();
  why = "cannot reach " + endpoint.text + ": " + std::strerror(errno) + "; is hostd running?";
  return -1;
}

int dial_tcp(const Endpoint& endpoint, int timeout_s, std::string& why) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int status = getaddrinfo(endpoint.host.c_str(), endpoint.port.c_str(), &hints, &found);
  if (status != 0) {
    why = "cannot resolve " + endpoint.text + ": " + gai_strerror(status);
    return -1;
  }
  int error = 0;
  int connected = -1;
  for (const addrinfo* one = found; one != nullptr && connected < 0; one = one->ai_next) {
    Descriptor fd(socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, one->ai_protocol));
    if (fd.get() < 0) continue;
    set_timeout(fd.get(), SO_SNDTIMEO, timeout_s);  // bounds connect() too
    set_up_tcp(fd.get());
    // The buffers are left to the kernel: a size set here would end its own tuning and be cut to rmem_max.
    if (connect_all(fd.get(), one->ai_addr, one->ai_addrlen))
      connected = fd.release();
    else
      error = errno;
  }
  freeaddrinfo(found);
  if (connected < 0)
    why = "cannot reach " + endpoint.text + ": " + std::strerror(error) + "; is hostd running there?";
  return connected;
}

int dial_vsock(const Endpoint& endpoint, int timeout_s, std::string& why) {
  Descriptor fd(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = static_cast<u32>(std::strtoul(endpoint.host.c_str(), nullptr, 10));
  address.svm_port = static_cast<u32>(std::strtoul(endpoint.port.c_str(), nullptr, 10));
  // vsock does not take connect()'s bound from SO_SNDTIMEO (vsock(7)).
  const timeval timeout{timeout_s, 0};
  setsockopt(fd.get(), AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &timeout, sizeof timeout);
  set_timeout(fd.get(), SO_SNDTIMEO, timeout_s);
  if (fd.get() >= 0 && connect_all(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address))
    return fd.release();
  why = "cannot reach " + endpoint.text + ": " + std::strerror(errno) +
        (fd.get() < 0 ? "; does this virtual machine have a vsock device?"
                      : "; does hostd on the host listen there?");
  return -1;
}

}  // namespace

const char* transport_name(wire::TransportKind kind) {
  switch (kind) {
    case wire::TransportKind::shm:
      return "shm";
    case wire::TransportKind::tcp:
      return "tcp";
    case wire::TransportKind::vsock:
      return "vsock";
    case wire::TransportKind::rdma:
      return "rdma";
    case wire::TransportKind::tls:
      return "tls";
    case wire::TransportKind::window:
      return "window";
  }
  return "unknown";
}

bool candidates(std::vector<Endpoint>& endpoints, std::string& why) {
  const std::string named = environment("GPUPOOL_ENDPOINT");
  const std::string transport = environment("GPUPOOL_TRANSPORT");
  const std::string window_socket = environment("GPUPOOL_WINDOW_SOCKET");
  if (!named.empty()) {
    endpoints.emplace_back();
    endpoints.back().wanted_transport = transport;
    endpoints.back().window_socket = window_socket;
    return parse_endpoint(named, "GPUPOOL_ENDPOINT", endpoints.back(), why);
  }
  GuestFile file;
  if (!read_guest_file(file, why)) return false;
  if (!file.path.empty()) {
    endpoints.emplace_back();
    endpoints.back().wanted_transport = transport.empty() ? file.transport : transport;
    endpoints.back().window_socket = window_socket.empty() ? file.window_socket : window_socket;
    return parse_endpoint(file.endpoint, "endpoint in " + file.path, endpoints.back(), why);
  }
  const std::string runtime = environment("XDG_RUNTIME_DIR");
  const std::string own = runtime.empty() ? "/tmp/gpupool-" + std::to_string(getuid()) : runtime + "/gpupool";
  for (const std::string& path : {std::string("/run/gpupool/hostd.sock"), own + "/hostd.sock"}) {
    struct stat facts {};
    if (stat(path.c_str(), &facts) != 0) continue;
    // Whoever serves the socket sees all our data: only root's or our own.
    if (facts.st_uid != 0 && facts.st_uid != getuid()) continue;
    endpoints.emplace_back();
    endpoints.back().wanted_transport = transport;
    if (!parse_endpoint("unix:" + path, path, endpoints.back(), why)) return false;
  }
  if (!endpoints.empty()) return true;
  why =
      "no hostd is running on this machine; start one (`gpupool hostd`), use `gpupool run -- PROGRAM`, or "
      "set "
      "GPUPOOL_ENDPOINT";
  return false;
}

bool check_transport(const Endpoint& endpoint, std::string& why) {
  const std::string& wanted = endpoint.wanted_transport;
  if (wanted.empty()) return true;
  const std::string offered = transport_name(endpoint.kind);
  const bool needs_window = wanted == transport_name(wire::TransportKind::window);
  if (wanted == offered || (needs_window && endpoint.kind == wire::TransportKind::vsock)) return true;
  if (wanted == "shm" || wanted == "tcp" || wanted == "tls" || wanted == "vsock" || needs_window)
    why = "transport " + wanted + " was asked for, but " + endpoint.text + " offers " + offered +
          "; choose an endpoint of that kind or unset GPUPOOL_TRANSPORT";
  else
    why = "GPUPOOL_TRANSPORT=" + wanted +
          " is not available in this version; shm, tls, tcp, vsock and window are";
  return false;
}

void set_up_tcp(int fd) {
  const auto set = [fd](int level, int name, int value) {
    setsockopt(fd, level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  // A host that vanishes resets nothing. While nothing is under way the kernel asks whether it is there, and
  // what was sent it repeats for a minute instead of some 15: tcp(7), where TCP_USER_TIMEOUT bounds both. A
  // worker that lives reads on, whatever its GPU does.
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 60'000);
}

void set_timeout(int fd, int option, int seconds) {
  const timeval timeout{seconds, 0};
  setsockopt(fd, SOL_SOCKET, option, &timeout, sizeof timeout);
}

int dial_socket(const Endpoint& endpoint, int timeout_s, std::string& why) {
  if (endpoint.kind == wire::TransportKind::shm) return dial_unix(endpoint, timeout_s, why);
  if (endpoint.kind == wire::TransportKind::vsock) return dial_vsock(endpoint, timeout_s, why);
  return dial_tcp(endpoint, timeout_s, why);
}

bool read_token(u8 (&token)[64], std::string& why) {
  const std::string path = environment("GPUPOOL_TOKEN_FILE");
  if (path.empty()) return true;
  Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char text[sizeof token + 1] = {};
  const ssize_t got = fd.get() < 0 ? -1 : read(fd.get(), text, sizeof text);
  if (got < 0 || got > static_cast<ssize_t>(sizeof token)) {
    why = "GPUPOOL_TOKEN_FILE " + path +
          (got < 0 ? std::string(": ") + std::strerror(errno) : ": longer than 64 bytes");
    return false;
  }
  size_t used = static_cast<size_t>(got);
  while (used > 0 && (text[used - 1] == '\n' || text[used - 1] == ' ')) --used;
  std::memcpy(token, text, used);
  return true;
}

bool read_number(const char* name, u32 highest, u32& value, std::string& why) {
  const std::string text = environment(name);
  if (text.empty()) return true;
  char* end = nullptr;
  const unsigned long number = std::strtoul(text.c_str(), &end, 10);
  if (*end == 0 && number >= 1 && number <= highest) {
    value = static_cast<u32>(number);
    return true;
  }
  why = std::string(name) + " is '" + text + "'; it must be a whole number from 1 to " +
        std::to_string(highest);
  return false;
}

bool read_zero_copy(wire::ZeroCopyMode& mode, std::string& why) {
  const std::string text = environment("GPUPOOL_TCP_ZEROCOPY");
  if (text.empty() || wire::zero_copy_mode(text, mode)) return true;
  why = "GPUPOOL_TCP_ZEROCOPY is '" + text + "'; it must be auto, off or always";
  return false;
}

bool read_vgpu(char (&name)[64], std::string& why) {
  const std::string text = environment("GPUPOOL_VGPU");
  if (text.size() < sizeof name) {
    std::memcpy(name, text.c_str(), text.size() + 1);
    return true;
  }
  why = "GPUPOOL_VGPU has " + std::to_string(text.size()) + " bytes; the name of a vGPU has at most 63";
  return false;
}

void read_program_name(char (&program)[64]) {
  Descriptor comm(open("/proc/self/comm", O_RDONLY | O_CLOEXEC));
  if (comm.get() < 0) return;
  const ssize_t got = read(comm.get(), program, sizeof program - 1);
  if (got > 0 && program[got - 1] == '\n') program[got - 1] = 0;
}

bool send_all(int fd, const void* data, size_t size) {
  const u8* next = static_cast<const u8*>(data);
  while (size > 0) {
    const ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    next += sent;
    size -= static_cast<size_t>(sent);
  }
  return true;
}

}  // namespace gpupool::guest
