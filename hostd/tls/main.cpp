// gpupool-tls: ends TLS for one connection of an endpoint tls://, so that neither hostd nor a worker holds
// the certificate's key or parses what comes from the network before the client has shown that it speaks TLS.
//
// hostd starts one a connection, with the accepted socket and one end of a socket pair; hostd and then a
// worker have the other. It reads certificate and key, becomes another user, locks itself in as a worker
// does, and only then reads the first byte. It ends with its connection.
#include <getopt.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>

#include "hostd/worker/log.hpp"
#include "hostd/worker/sandbox.hpp"
#include "wire/cpp/futex.hpp"
#include "wire/cpp/hello.hpp"
#include "wire/cpp/query.hpp"
#include "wire/cpp/version.hpp"
#include "wire/tls/tunnel.hpp"

namespace gpupool::worker {
// The log is a worker's; here no driver writes to standard error.
void drain_standard_error() {}
}  // namespace gpupool::worker

namespace gpupool::tls {
namespace {

// What hostd makes of a handshake that failed (hostd/adapters/tls_process.py).
constexpr int kExitLate = 10, kExitPlain = 11, kExitVersion = 12, kExitHandshake = 13, kExitSetup = 14;

struct Options {
  int socket = -1;
  int plain = -1;
  int timeout_s = 0;
  bool json = false;
  std::string certificate, key;
  worker::SandboxOptions sandbox;
};

enum Option { kSocket = 1, kPlain, kTimeout, kCertificate, kKey, kUser, kGroup, kCalls, kFiles, kJson };

bool parse_number(const char* text, u32& number) {
  char* end = nullptr;
  errno = 0;
  const unsigned long value = std::strtoul(text, &end, 10);
  if (*text == 0 || *text == '-' || *end != 0 || errno != 0 || value > 0x7fff'ffff) return false;
  number = static_cast<u32>(value);
  return true;
}

bool take(int option, const char* text, Options& options) {
  u32 number = 0;
  if (option == kCertificate || option == kKey) {
    (option == kCertificate ? options.certificate : options.key) = text;
    return text[0] == '/';
  }
  if (option == kCalls || option == kFiles || option == kJson) {
    const bool yes = std::strcmp(text, "yes") == 0;
    if (option == kCalls) options.sandbox.calls = yes ? worker::CallFilter::end : worker::CallFilter::off;
    if (option == kFiles) options.sandbox.files = yes;
    if (option == kJson) options.json = yes;
    return yes || std::strcmp(text, "no") == 0;
  }
  if (!parse_number(text, number)) return false;
  if (option == kUser) options.sandbox.user = number;
  if (option == kGroup) options.sandbox.group = number;
  if (option == kSocket) options.socket = static_cast<int>(number);
  if (option == kPlain) options.plain = static_cast<int>(number);
  if (option == kTimeout) options.timeout_s = static_cast<int>(number);
  return true;
}

bool parse(int argc, char** argv, Options& options) {
  static constexpr option kOptions[] = {
      {"socket-fd", required_argument, nullptr, kSocket},
      {"plain-fd", required_argument, nullptr, kPlain},
      {"timeout-s", required_argument, nullptr, kTimeout},
      {"certificate", required_argument, nullptr, kCertificate},
      {"key", required_argument, nullptr, kKey},
      {"user", required_argument, nullptr, kUser},
      {"group", required_argument, nullptr, kGroup},
      {"sandbox-calls", required_argument, nullptr, kCalls},
      {"sandbox-files", required_argument, nullptr, kFiles},
      {"log-json", required_argument, nullptr, kJson},
      {nullptr, 0, nullptr, 0},
  };
  for (int found; (found = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;)
    if (found == '?' || !take(found, optarg, options)) return false;
  return options.socket >= 0 && options.plain >= 0 && options.timeout_s > 0 && !options.key.empty() &&
         !options.certificate.empty();
}

int fail(int code, const char* what, const std::string& why) {
  worker::log(worker::LogLevel::error, what, why);
  return code;
}

// A gpupool client that dialled tcp:// reads this as the answer to its Hello.
void tell_plain_client(int socket) {
  wire::Welcome answer;
  answer.bytes = sizeof answer;
  answer.status = wire::WelcomeStatus::bad_request;
  std::strncpy(answer.host_version, wire::kVersion, sizeof answer.host_version - 1);
  std::strncpy(answer.text, "this endpoint speaks TLS only; dial tls:// instead of tcp://",
               sizeof answer.text - 1);
  u32 magic = 0;
  if (recv(socket, &magic, sizeof magic, MSG_PEEK | MSG_DONTWAIT) != sizeof magic) return;
  if (magic != wire::kHelloMagic && magic != wire::kLaneMagic && magic != wire::kQueryMagic) return;
  static_cast<void>(send(socket, &answer, sizeof answer, MSG_NOSIGNAL | MSG_DONTWAIT));
  // Closing with unread bytes would reset the connection before the answer is read.
  u8 rest[512];
  while (recv(socket, rest, sizeof rest, MSG_DONTWAIT) > 0) continue;
  shutdown(socket, SHUT_WR);
}

int run(const Options& options) {
  Settings settings;
  std::string why;
  if (!settings.for_host(options.certificate, options.key, why))
    return fail(kExitSetup, "TLS cannot be served", why);
  if (!worker::become_user(options.sandbox, why))
    return fail(kExitSetup, "gpupool-tls cannot become another user", why);
  if (!worker::enter_sandbox(options.sandbox, "", why))
    return fail(kExitSetup, "gpupool-tls cannot enter its sandbox", why);
  Tunnel tunnel(settings, options.socket);
  const u64 deadline_ns = wire::monotonic_ns() + static_cast<u64>(options.timeout_s) * 1'000'000'000;
  switch (tunnel.shake_hands(deadline_ns, why)) {
    case Handshake::done:
      tunnel.relay(options.plain, true);
      return 0;
    case Handshake::late:
      return kExitLate;
    case Handshake::plain:
      tell_plain_client(options.socket);
      return kExitPlain;
    case Handshake::version:
      return kExitVersion;
    case Handshake::failed:
      break;
  }
  return kExitHandshake;
}

}  // namespace
}  // namespace gpupool::tls

int main(int argc, char** argv) {
  using namespace gpupool;
  tls::Options options;
  if (!tls::parse(argc, argv, options)) {
    worker::log(worker::LogLevel::error, "bad command line; this program is started by hostd");
    return worker::kExitUsage;
  }
  worker::configure_log({.json = options.json, .part = "tls"}, 0);
  worker::close_other_descriptors({options.socket, options.plain});
  std::signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_NAME, "gpupool-tls");
  return tls::run(options);
}
