// gpupool-ucx: carries connections between a socket and UCX, and so over RDMA where there is an adapter for
// it. One on the host's side, in front of hostd, and one on the program's side:
//
//   gpupool-ucx listen ADDRESS:PORT to unix:/path | HOST:PORT     accepts from UCX, dials the socket
//   gpupool-ucx dial HOST:PORT on ADDRESS:PORT                    accepts from the socket, dials over UCX
//
// Prints `ready ADDRESS:PORT`, where it listens, and serves until a signal ends it. With --parent PID it ends
// when that process, its parent, does. With --any-transport, on both sides, UCX may also take transports that
// do not tell when the other side dies, such as shared memory. One thread carries every connection. UCX
// trusts whom it talks to: who can reach a relay can harm all that it carries.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "ucx/link.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::ucx {
namespace {

constexpr size_t kMostLinks = 256;
constexpr int kSleepMs = 1000;
constexpr int kDialSeconds = 5;
constexpr std::uint64_t kSpinNs = 200'000;

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "gpupool-ucx: %s\n", text.c_str());
  std::exit(1);
}

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

// HOST:PORT (the host perhaps in brackets), or with `unix_too` unix:/path.
Address parse(const std::string& text, bool unix_too) {
  Address address;
  if (unix_too && text.rfind("unix:", 0) == 0) {
    auto& name = reinterpret_cast<sockaddr_un&>(address.storage);
    if (text.size() - 5 >= sizeof name.sun_path) fail(text + " is too long for a socket");
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, text.c_str() + 5, text.size() - 5);
    address.size = sizeof name;
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) fail(text + " is no HOST:PORT");
  std::string host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int status = getaddrinfo(host.c_str(), text.substr(colon + 1).c_str(), &hints, &found);
  if (status != 0) fail("cannot resolve " + text + ": " + gai_strerror(status));
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.size = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

void say_ready(const sockaddr_storage& storage) {
  char host[INET6_ADDRSTRLEN] = "?";
  const bool six = storage.ss_family == AF_INET6;
  const auto& four = reinterpret_cast<const sockaddr_in&>(storage);
  const auto& long_one = reinterpret_cast<const sockaddr_in6&>(storage);
  inet_ntop(storage.ss_family, six ? static_cast<const void*>(&long_one.sin6_addr) : &four.sin_addr, host,
            sizeof host);
  std::printf(six ? "ready [%s]:%u\n" : "ready %s:%u\n", host,
              unsigned{ntohs(six ? long_one.sin6_port : four.sin_port)});
  std::fflush(stdout);
}

// A socket to hostd, non-blocking once connected; -1 with a line when it cannot be reached.
int dial(const Address& address) {
  const int fd = socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval limit{kDialSeconds, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);  // bounds connect() too
  const int yes = 1;
  if (address.storage.ss_family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (fd >= 0 && connect(fd, address.get(), address.size) == 0) return fd;
  std::fprintf(stderr, "gpupool-ucx: cannot reach hostd: %s\n", std::strerror(errno));
  if (fd >= 0) close(fd);
  return -1;
}

// Every connection, and the one thread's waiting for all of them.
class Relay {
 public:
  Relay() : poll_(epoll_create1(EPOLL_CLOEXEC)) {
    if (poll_ < 0) fail(std::string("epoll: ") + std::strerror(errno));
  }

  const UcxContext& context() const { return context_; }
  bool full() const { return links_.size() >= kMostLinks; }

  void watch(int fd) { set_interest(fd, EPOLLIN); }

  // Takes over the socket.
  void add(int socket, const FarSide& far) {
    try {
      auto link = std::make_unique<Link>(context_, socket, far);
      watch(link->efd());
      links_.emplace(socket, Entry{std::move(link), 0});
    } catch (const UcxError& error) {
      std::fprintf(stderr, "gpupool-ucx: %s\n", error.what());
      close(socket);
    }
  }

  // One round; true when something was done.
  bool step() {
    bool any = false;
    for (auto place = links_.begin(); place != links_.end();) {
      Entry& entry = place->second;
      any |= entry.link->step();
      if (entry.link->finished()) {
        place = links_.erase(place);  // closes its descriptors, and so epoll forgets them
        continue;
      }
      const std::uint32_t wanted = entry.link->interest();
      if (wanted != entry.interest) set_interest(place->first, wanted, entry.interest != 0);
      entry.interest = wanted;
      ++place;
    }
    return any;
  }

  // Waits for news, but not at once after some (`any`) where there are processors to spare: being woken costs
  // more than a message takes on the networks that this is for.
  void rest(bool any, UcxWorker* door) {
    if (any) busy_ns_ = wire::monotonic_ns();
    if (any || (wire::Backoff::spare_cores() && wire::monotonic_ns() - busy_ns_ < kSpinNs)) return;
    if ((door != nullptr && !door->arm()) || !arm()) return;
    epoll_event events[64];
    epoll_wait(poll_, events, 64, kSleepMs);
  }

 private:
  struct Entry {
    std::unique_ptr<Link> link;
    std::uint32_t interest;
  };

  // Without interest a descriptor is taken out: epoll would go on to tell of a hang-up.
  void set_interest(int fd, std::uint32_t events, bool known = false) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    epoll_ctl(poll_, events == 0 ? EPOLL_CTL_DEL : known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
  }

  bool arm() {
    for (auto& [socket, entry] : links_)
      if (!entry.link->arm()) return false;
    return true;
  }

  int poll_;
  std::uint64_t busy_ns_ = 0;
  UcxContext context_;
  std::map<int, Entry> links_;  // by socket
};

// The host's side.
[[noreturn]] void listen(const Address& at, const Address& to, bool notices_failure) {
  Relay relay;
  UcxWorker worker(relay.context());
  std::vector<ucp_conn_request_h> requests;
  ucp_listener_h listener = nullptr;
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = {at.get(), at.size};
  params.conn_handler.arg = &requests;
  params.conn_handler.cb = [](ucp_conn_request_h request, void* list) {
    static_cast<std::vector<ucp_conn_request_h>*>(list)->push_back(request);
  };
  check(ucp_listener_create(worker.get(), &params, &listener), "ucp_listener_create");
  ucp_listener_attr_t facts{};
  facts.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  check(ucp_listener_query(listener, &facts), "ucp_listener_query");
  say_ready(facts.sockaddr);
  relay.watch(worker.efd());
  while (true) {
    bool any = worker.progress();
    for (const ucp_conn_request_h request : requests) {
      const int socket = relay.full() ? -1 : dial(to);
      if (socket < 0)
        ucp_listener_reject(listener, request);
      else
        relay.add(socket, {.request = request, .notices_failure = notices_failure});
    }
    requests.clear();
    any |= relay.step();
    relay.rest(any, &worker);
  }
}

// The program's side.
[[noreturn]] void dial_for(const Address& far, const Address& at, bool notices_failure) {
  Relay relay;
  const int listener = socket(at.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const int yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (listener < 0 || bind(listener, at.get(), at.size) != 0 || ::listen(listener, 64) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    fail(std::string("cannot listen: ") + std::strerror(errno));
  say_ready(bound);
  relay.watch(listener);
  while (true) {
    bool any = false;
    const int accepted = relay.full() ? -1 : accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (accepted >= 0) {
      setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      relay.add(accepted,
                {.address = far.get(), .address_bytes = far.size, .notices_failure = notices_failure});
      any = true;
    }
    any |= relay.step();
    relay.rest(any, nullptr);
  }
}

int run(int count, char** arguments) {
  std::vector<std::string> words(arguments + 1, arguments + count);
  bool notices_failure = true;
  if (words.size() > 2 && words[0] == "--parent") {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != std::atoi(words[1].c_str())) return 1;  // it died before the line above
    words.erase(words.begin(), words.begin() + 2);
  }
  if (!words.empty() && words[0] == "--any-transport") {
    notices_failure = false;
    words.erase(words.begin());
  }
  if (words.size() == 4 && words[0] == "listen" && words[2] == "to")
    listen(parse(words[1], false), parse(words[3], true), notices_failure);
  if (words.size() == 4 && words[0] == "dial" && words[2] == "on")
    dial_for(parse(words[1], false), parse(words[3], false), notices_failure);
  std::fprintf(stderr,
               "usage: gpupool-ucx [OPTIONS] listen ADDRESS:PORT to unix:/path|HOST:PORT\n"
               "       gpupool-ucx [OPTIONS] dial HOST:PORT on ADDRESS:PORT\n"
               "options: --parent PID, then --any-transport\n");
  return 2;
}

}  // namespace
}  // namespace gpupool::ucx

int main(int count, char** words) {
  try {
    return gpupool::ucx::run(count, words);
  } catch (const gpupool::ucx::UcxError& error) {
    gpupool::ucx::fail(error.what());
  }
}
