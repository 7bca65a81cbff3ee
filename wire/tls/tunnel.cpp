#include "wire/tls/tunnel.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <cctype>
#include <cerrno>
#include <cstring>

#include "wire/cpp/futex.hpp"

namespace gpupool::tls {
namespace {

constexpr size_t kBuffer = 128u << 10;  // each direction of a tunnel
constexpr size_t kRecord = 16u << 10;   // the most that one TLS record carries
constexpr u64 kSpinNs = 100'000;        // a fast network's round trip; then sleep
constexpr const char* kNoTls = "the peer speaks no TLS";
constexpr u8 kHandshakeRecord = 22, kAlertRecord = 21;
// AES-128 first: the fastest that TLS 1.3 has where processors have AES, which all x86-64-v2 servers do.
constexpr const char* kCiphers = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

bool is_address(const std::string& host) {
  u8 bytes[16];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 || inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

void set_nonblocking(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

// Until the socket is ready or it is too late.
bool wait_for(int fd, short events, u64 deadline_ns) {
  while (true) {
    const u64 now = wire::monotonic_ns();
    if (now >= deadline_ns) return false;
    pollfd one{fd, events, 0};
    const int ready = poll(&one, 1, static_cast<int>((deadline_ns - now) / 1'000'000 + 1));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

// The first byte that waits in the socket; -1 when there is none.
int first_byte(int fd) {
  u8 byte = 0;
  return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1 ? byte : -1;
}

}  // namespace

bool parse_fingerprint(const std::string& text, std::string& fingerprint) {
  fingerprint.clear();
  unsigned half = 0;
  int digits = 0;
  for (const char one : text) {
    if (one == ':' || one == ' ' || one == '\n') continue;
    if (std::isxdigit(static_cast<unsigned char>(one)) == 0) return false;
    const int low = std::tolower(static_cast<unsigned char>(one));
    half = half * 16 + static_cast<unsigned>(low <= '9' ? low - '0' : low - 'a' + 10);
    if (++digits % 2 != 0) continue;
    fingerprint.push_back(static_cast<char>(half));
    half = 0;
  }
  return digits == 64;
}

std::string fingerprint_text(const std::string& fingerprint) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const char one : fingerprint) {
    const auto byte = static_cast<u8>(one);
    text += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return text;
}

Settings::~Settings() {
  if (context_ != nullptr) library_->SSL_CTX_free(context_);
}

bool Settings::make(bool client, std::string& why) {
  client_ = client;
  library_ = openssl(why);
  if (library_ == nullptr) return false;
  const OpenSsl& library = *library_;
  context_ = library.SSL_CTX_new(client ? library.TLS_client_method() : library.TLS_server_method());
  if (context_ == nullptr || library.SSL_CTX_ctrl(context_, kControlLowestVersion, kTls13, nullptr) != 1) {
    why = "this OpenSSL has no TLS 1.3: " + reason(library);
    return false;
  }
  library.SSL_CTX_ctrl(context_, kControlMode, kPartialWrite, nullptr);
  library.SSL_CTX_ctrl(context_, kControlSessionCache, 0, nullptr);
  library.SSL_CTX_set_num_tickets(context_, 0);  // no session is resumed: tickets would be sent for nothing
  // Reads what is there instead of a record's header and its body one after the other.
  library.SSL_CTX_ctrl(context_, kControlReadAhead, 1, nullptr);
  library.SSL_CTX_set_default_read_buffer_len(context_, kBuffer);
  library.SSL_CTX_set_ciphersuites(context_, kCiphers);
  return true;
}

bool Settings::for_client(const Trust& trust, std::string& why) {
  if (!make(true, why)) return false;
  trust_ = trust;
  // A fingerprint is compared after the handshake and before anything is said.
  library_->SSL_CTX_set_verify(context_, trust.fingerprint.empty() ? kVerifyPeer : kVerifyNone, nullptr);
  if (!trust.fingerprint.empty()) return true;
  const bool own = !trust.ca_file.empty();
  const int loaded = own ? library_->SSL_CTX_load_verify_locations(context_, trust.ca_file.c_str(), nullptr)
                         : library_->SSL_CTX_set_default_verify_paths(context_);
  if (loaded == 1) return true;
  why = (own ? "the certificates in " + trust.ca_file : std::string("this system's certificates")) +
        " cannot be read: " + reason(*library_);
  return false;
}

bool Settings::for_host(const std::string& certificate_file, const std::string& key_file, std::string& why) {
  if (!make(false, why)) return false;
  const OpenSsl& library = *library_;
  if (library.SSL_CTX_use_certificate_chain_file(context_, certificate_file.c_str()) != 1)
    why = "certificate " + certificate_file + ": " + reason(library);
  else if (library.SSL_CTX_use_PrivateKey_file(context_, key_file.c_str(), kPem) != 1)
    why = "key " + key_file + ": " + reason(library);
  else if (library.SSL_CTX_check_private_key(context_) != 1)
    why = "key " + key_file + " does not belong to certificate " + certificate_file;
  else
    return true;
  return false;
}

// Bytes on their way through: [begin, end) of `data` are still to be written.
struct Tunnel::Pipe {
  std::unique_ptr<u8[]> data{new u8[kBuffer]};
  size_t begin = 0, end = 0;
  bool ended = false;   // nothing more will be read
  bool passed = false;  // its end has been passed on

  bool empty() const { return begin == end; }
};

Tunnel::Tunnel(const Settings& settings, int wire, u64 records_a_key)
    : settings_(settings), library_(*settings.library_), wire_(wire), records_a_key_(records_a_key) {
  set_nonblocking(wire);
  ssl_ = library_.SSL_new(settings.context_);
  if (ssl_ == nullptr || library_.SSL_set_fd(ssl_, wire) != 1) return;  // the handshake fails, with a reason
  if (settings.client_)
    prepare_client();
  else
    library_.SSL_set_accept_state(ssl_);
}

void Tunnel::prepare_client() {
  library_.SSL_set_connect_state(ssl_);
  const std::string& host = settings_.trust_.host;
  VerifyParameters* parameters = library_.SSL_get0_param(ssl_);
  if (is_address(host)) {
    library_.X509_VERIFY_PARAM_set1_ip_asc(parameters, host.c_str());
  } else {
    library_.X509_VERIFY_PARAM_set1_host(parameters, host.c_str(), host.size());
    library_.SSL_ctrl(ssl_, kControlServerName, 0, const_cast<char*>(host.c_str()));
  }
}

Tunnel::~Tunnel() {
  if (ssl_ != nullptr) library_.SSL_free(ssl_);
}

Handshake Tunnel::shake_hands(u64 deadline_ns, std::string& why) {
  // The host looks at the first byte before it takes any: a client that came without TLS can be told so.
  if (!settings_.client_ && !wait_for(wire_, POLLIN, deadline_ns)) return late(why);
  for (bool looked = false; true;) {
    const int first = looked ? -1 : first_byte(wire_);
    if (first >= 0 && first != kHandshakeRecord && first != kAlertRecord) {
      why = kNoTls;
      return Handshake::plain;
    }
    looked = looked || first >= 0;
    library_.ERR_clear_error();
    errno = 0;
    const int result = ssl_ == nullptr ? -1 : library_.SSL_do_handshake(ssl_);
    if (result == 1) return trusted(why) ? Handshake::done : Handshake::failed;
    const int error = ssl_ == nullptr ? kErrorSsl : library_.SSL_get_error(ssl_, result);
    if (error != kErrorWantRead && error != kErrorWantWrite) return failed(result, why);
    if (!wait_for(wire_, error == kErrorWantRead ? POLLIN : POLLOUT, deadline_ns)) return late(why);
  }
}

Handshake Tunnel::late(std::string& why) {
  why = "it took too long";
  return Handshake::late;
}

Handshake Tunnel::failed(int result, std::string& why) {
  const int system_error = errno;
  const long verified = ssl_ == nullptr ? 0 : library_.SSL_get_verify_result(ssl_);
  std::string text = reason(library_);
  if (settings_.client_ && verified != 0)
    text = std::string("its certificate is not trusted: ") + library_.X509_verify_cert_error_string(verified);
  if (text.empty())
    text = result == 0 || system_error == 0 ? "the peer closed the connection" : std::strerror(system_error);
  why = text;
  // What OpenSSL says of other bytes than TLS's, where they were there before we could look.
  if (settings_.client_ && text.find("wrong version number") != std::string::npos) {
    why = kNoTls;
    return Handshake::plain;
  }
  const bool old = text.find("unsupported protocol") != std::string::npos ||
                   text.find("protocol version") != std::string::npos;
  return old ? Handshake::version : Handshake::failed;
}

bool Tunnel::trusted(std::string& why) {
  const std::string& expected = settings_.trust_.fingerprint;
  if (!settings_.client_ || expected.empty()) return true;
  Certificate* certificate = library_.SSL_get1_peer_certificate(ssl_);
  unsigned char digest[64] = {};
  unsigned size = 0;
  if (certificate != nullptr) library_.X509_digest(certificate, library_.EVP_sha256(), digest, &size);
  library_.X509_free(certificate);
  const std::string found(reinterpret_cast<char*>(digest), size);
  if (found == expected) return true;
  why = "its certificate has the fingerprint " + fingerprint_text(found) + ", expected is " +
        fingerprint_text(expected);
  return false;
}

// The four steps. True when something moved.
bool Tunnel::read_wire(Pipe& in) {
  if (in.ended || !in.empty()) return false;
  in.begin = in.end = 0;
  read_needs_write_ = false;
  do {
    library_.ERR_clear_error();
    const int got = library_.SSL_read(ssl_, in.data.get() + in.end, static_cast<int>(kBuffer - in.end));
    if (got > 0) {
      in.end += static_cast<size_t>(got);
      continue;
    }
    const int error = library_.SSL_get_error(ssl_, got);
    read_needs_write_ = error == kErrorWantWrite;
    if (error == kErrorWantRead || error == kErrorWantWrite) break;
    // The end of the connection without TLS's own is an end as well: our messages have their lengths.
    in.ended = true;
    if (error != kErrorZeroReturn) broken_ = true;
    return true;
  } while (kBuffer - in.end >= kRecord && library_.SSL_has_pending(ssl_) != 0);
  return !in.empty();
}

bool Tunnel::write_plain(int plain, Pipe& in) {
  if (in.empty()) {
    if (!in.ended || in.passed) return false;
    shutdown(plain, SHUT_WR);
    in.passed = true;
    return true;
  }
  const ssize_t sent = send(plain, in.data.get() + in.begin, in.end - in.begin, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) {
    in.begin += static_cast<size_t>(sent);
    return true;
  }
  if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return false;
  in.begin = in.end;  // nobody is there to read it
  in.ended = in.passed = true;
  return true;
}

bool Tunnel::read_plain(int plain, Pipe& out) {
  if (out.ended || !out.empty()) return false;
  const ssize_t got = recv(plain, out.data.get(), kBuffer, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return false;
  out.begin = 0;
  out.end = got > 0 ? static_cast<size_t>(got) : 0;
  out.ended = got <= 0;
  return true;
}

bool Tunnel::write_wire(Pipe& out) {
  if (broken_) return false;
  if (out.empty()) {
    if (!out.ended || out.passed) return false;
    library_.SSL_shutdown(ssl_);
    shutdown(wire_, SHUT_WR);
    out.passed = true;
    return true;
  }
  const bool again =
      write_needs_read_ || write_needs_write_;  // a write that is under way is made again as it is
  write_needs_read_ = write_needs_write_ = false;
  if (!again && records_ >= records_a_key_ && library_.SSL_key_update(ssl_, 0) == 1) {
    records_ = 0;
    ++renewals_;
  }
  library_.ERR_clear_error();
  const int sent =
      library_.SSL_write(ssl_, out.data.get() + out.begin, static_cast<int>(out.end - out.begin));
  if (sent > 0) {
    out.begin += static_cast<size_t>(sent);
    records_ += (static_cast<size_t>(sent) + kRecord - 1) / kRecord;
    return true;
  }
  const int error = library_.SSL_get_error(ssl_, sent);
  write_needs_read_ = error == kErrorWantRead;
  write_needs_write_ = error == kErrorWantWrite;
  if (write_needs_read_ || write_needs_write_) return false;
  broken_ = true;
  return true;
}

void Tunnel::sleep(int plain, const Pipe& in, const Pipe& out, u64 deadline_ns) {
  pollfd both[2] = {{wire_, 0, 0}, {plain, 0, 0}};
  if ((in.empty() && !in.ended) || write_needs_read_) both[0].events |= POLLIN;
  if (write_needs_write_ || read_needs_write_) both[0].events |= POLLOUT;
  if (out.empty() && !out.ended) both[1].events |= POLLIN;
  if (!in.empty()) both[1].events |= POLLOUT;
  // What is not asked about must not wake us: a connection that is half closed would, for ever.
  for (pollfd& one : both)
    if (one.events == 0) one.fd = -1;
  const u64 start = wire::monotonic_ns();
  if (wire::Backoff::spare_cores() && deadline_ns == 0)
    while (wire::monotonic_ns() - start < kSpinNs)
      if (poll(both, 2, 0) != 0) return;
  const u64 left_ms = deadline_ns == 0 || deadline_ns <= start ? 0 : (deadline_ns - start) / 1'000'000 + 1;
  poll(both, 2, deadline_ns == 0 ? -1 : static_cast<int>(left_ms));
}

void Tunnel::relay(int plain, bool wait_for_peer) {
  Pipe in, out;
  u64 deadline_ns = 0;  // once one direction has ended
  while (true) {
    bool moved = read_wire(in);
    moved |= write_plain(plain, in);
    moved |= read_plain(plain, out);
    moved |= write_wire(out);
    if (in.passed && (out.passed || broken_)) return;
    if (out.passed && !wait_for_peer) return;
    if ((in.ended || out.ended) && deadline_ns == 0)
      deadline_ns = wire::monotonic_ns() + u64{kLingerMs} * 1'000'000;
    if (deadline_ns != 0 && wire::monotonic_ns() >= deadline_ns) return;
    if (!moved) sleep(plain, in, out, deadline_ns);
  }
}

}  // namespace gpupool::tls
