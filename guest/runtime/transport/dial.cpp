// Finding the host, saying Hello and reading Welcome.
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest {
namespace {

constexpr int kDialTimeoutSeconds = 10;
// A cold worker initialises the driver first; 64 of them at once on few cores take a while.
constexpr int kWelcomeTimeoutSeconds = 120;

struct Endpoint {
  wire::TransportKind kind = wire::TransportKind::shm;
  std::string path;  // unix
  std::string host, port;
  std::string text;  // as the user wrote it
};

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  void reset(int fd) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool parse_endpoint(const std::string& text, Endpoint& endpoint, std::string& why) {
  endpoint.text = text;
  if (text.rfind("unix:", 0) == 0) {
    endpoint.kind = wire::TransportKind::shm;
    endpoint.path = text.substr(5);
    if (!endpoint.path.empty() && endpoint.path.size() < sizeof(sockaddr_un::sun_path)) return true;
  } else if (text.rfind("tcp://", 0) == 0) {
    endpoint.kind = wire::TransportKind::tcp;
    const std::string rest = text.substr(6);
    const size_t colon = rest.rfind(':');
    if (colon != std::string::npos && colon > 0 && colon + 1 < rest.size()) {
      endpoint.host = rest.substr(0, colon);
      if (endpoint.host.size() > 2 && endpoint.host.front() == '[')
        endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
      endpoint.port = rest.substr(colon + 1);
      return true;
    }
  }
  why = "GPUPOOL_ENDPOINT is '" + text + "'; it must be unix:/path/to/socket or tcp://host:port";
  return false;
}

// The endpoints to try, in order: what the user named, or the system's hostd and then this user's own.
bool candidates(std::vector<Endpoint>& endpoints, std::string& why) {
  const std::string named = environment("GPUPOOL_ENDPOINT");
  if (!named.empty()) {
    endpoints.emplace_back();
    return parse_endpoint(named, endpoints.back(), why);
  }
  const std::string runtime = environment("XDG_RUNTIME_DIR");
  const std::string own = runtime.empty() ? "/tmp/gpupool-" + std::to_string(getuid()) : runtime + "/gpupool";
  for (const std::string& path : {std::string("/run/gpupool/hostd.sock"), own + "/hostd.sock"}) {
    struct stat facts {};
    if (stat(path.c_str(), &facts) != 0) continue;
    // Whoever serves the socket sees all our data: only root's or our own.
    if (facts.st_uid != 0 && facts.st_uid != getuid()) continue;
    endpoints.emplace_back();
    if (!parse_endpoint("unix:" + path, endpoints.back(), why)) return false;
  }
  if (!endpoints.empty()) return true;
  why =
      "no hostd is running on this machine; start one (`gpupool hostd`), use `gpupool run -- PROGRAM`, or "
      "set "
      "GPUPOOL_ENDPOINT";
  return false;
}

bool check_transport(const Endpoint& endpoint, std::string& why) {
  const std::string wanted = environment("GPUPOOL_TRANSPORT");
  if (wanted.empty()) return true;
  const char* offered = endpoint.kind == wire::TransportKind::shm ? "shm" : "tcp";
  if (wanted == offered) return true;
  if (wanted == "shm" || wanted == "tcp")
    why = "GPUPOOL_TRANSPORT=" + wanted + " was asked for, but " + endpoint.text + " offers " + offered +
          "; choose an endpoint of that kind or unset GPUPOOL_TRANSPORT";
  else
    why = "GPUPOOL_TRANSPORT=" + wanted + " is not available in this version; shm and tcp are";
  return false;
}

void set_timeout(int fd, int option, int seconds) {
  const timeval timeout{seconds, 0};
  setsockopt(fd, SOL_SOCKET, option, &timeout, sizeof timeout);
}

// connect() to its end. On Linux the call may simply be made again after a signal: over a unix socket nothing
// has happened yet, over TCP it goes on waiting for the connection that is under way.
bool connect_all(int fd, const sockaddr* address, socklen_t size) {
  int result = 0;
  do result = connect(fd, address, size);
  while (result < 0 && errno == EINTR);
  return result == 0;
}

int dial_unix(const Endpoint& endpoint, std::string& why) {
  Descriptor fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, endpoint.path.c_str(), endpoint.path.size() + 1);
  set_timeout(fd.get(), SO_SNDTIMEO, kDialTimeoutSeconds);
  if (fd.get() >= 0 && connect_all(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address))
    return fd.release();
  why = "cannot reach " + endpoint.text + ": " + std::strerror(errno) + "; is hostd running?";
  return -1;
}

int dial_tcp(const Endpoint& endpoint, std::string& why) {
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
    set_timeout(fd.get(), SO_SNDTIMEO, kDialTimeoutSeconds);  // bounds connect() too
    const int yes = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
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

// The token from GPUPOOL_TOKEN_FILE. Never from an environment value: those are visible to others.
bool read_token(wire::Hello& hello, std::string& why) {
  const std::string path = environment("GPUPOOL_TOKEN_FILE");
  if (path.empty()) return true;
  Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char text[sizeof hello.token + 1] = {};
  const ssize_t got = fd.get() < 0 ? -1 : read(fd.get(), text, sizeof text);
  if (got < 0 || got > static_cast<ssize_t>(sizeof hello.token)) {
    why = "GPUPOOL_TOKEN_FILE " + path +
          (got < 0 ? std::string(": ") + std::strerror(errno) : ": longer than 64 bytes");
    return false;
  }
  size_t used = static_cast<size_t>(got);
  while (used > 0 && (text[used - 1] == '\n' || text[used - 1] == ' ')) --used;
  std::memcpy(hello.token, text, used);
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

bool make_hello(wire::TransportKind kind, wire::Hello& hello, std::string& why) {
  hello.bytes = sizeof hello;
  hello.transport = kind;
  hello.pid = static_cast<u32>(getpid());
  hello.cuda_version = wire::kCudaVersion;
  std::strncpy(hello.client_version, wire::kVersion, sizeof hello.client_version - 1);
  Descriptor comm(open("/proc/self/comm", O_RDONLY | O_CLOEXEC));
  if (comm.get() >= 0) {
    const ssize_t got = read(comm.get(), hello.program, sizeof hello.program - 1);
    if (got > 0 && hello.program[got - 1] == '\n') hello.program[got - 1] = 0;
  }
  return read_token(hello, why) && read_number("GPUPOOL_COMPUTE_PERCENT", 100, hello.compute_percent, why) &&
         read_number("GPUPOOL_MEMORY_MIB", 1u << 24, hello.memory_mib, why);
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

// Reads the Welcome; `window_fd` receives the descriptor that comes with it, if one does.
bool receive_welcome(int fd, wire::Welcome& welcome, Descriptor& window_fd, std::string& why) {
  set_timeout(fd, SO_RCVTIMEO, kWelcomeTimeoutSeconds);
  size_t got = 0;
  while (got < sizeof welcome) {
    iovec piece{reinterpret_cast<u8*>(&welcome) + got, sizeof welcome - got};
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
  set_timeout(fd, SO_RCVTIMEO, 0);
  set_timeout(fd, SO_SNDTIMEO, 0);
  if (welcome.magic == wire::kWelcomeMagic) return true;
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
  Descriptor fd(endpoint.kind == wire::TransportKind::shm ? dial_unix(endpoint, why)
                                                          : dial_tcp(endpoint, why));
  if (fd.get() < 0) return Attempt::failed;
  hello.window_base = reinterpret_cast<u64>(base);
  Descriptor window_fd;
  if (!send_all(fd.get(), &hello, sizeof hello))
    why = "the host closed the connection: " + std::string(std::strerror(errno));
  if (!receive_welcome(fd.get(), connection.welcome, window_fd, why)) return Attempt::failed;
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
  connection.transport = endpoint.kind == wire::TransportKind::shm
                             ? make_shared_memory(fd.release(), window_fd.release(), connection.window, why)
                             : make_stream(fd.release(), connection.window, why);
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
