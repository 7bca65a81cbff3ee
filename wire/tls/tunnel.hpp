// TLS 1.3 on one TCP connection: the handshake, and then bytes between it and a plain socket, whose other end
// is used as if it were the connection. Client and host use the same code.
//
// A tunnel belongs to one thread (an SSL object must not be used by two), and sleeps in poll() when nothing
// moves.
#pragma once

#include <memory>
#include <string>

#include "wire/tls/openssl.hpp"

namespace gpupool::tls {

// What a client holds its host to: one of the two is always checked.
struct Trust {
  std::string host;         // name or address that was dialled
  std::string ca_file;      // who signs; empty: those whom this system trusts
  std::string fingerprint;  // 32 bytes, SHA-256 of the certificate: then nothing else counts
};

// 64 hexadecimal digits, colons and spaces between them as one likes. False when it is something else.
bool parse_fingerprint(const std::string& text, std::string& fingerprint);
std::string fingerprint_text(const std::string& fingerprint);

// What connections of one kind share. Only TLS 1.3 is spoken.
class Settings {
 public:
  Settings() = default;
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;
  ~Settings();

  bool for_client(const Trust& trust, std::string& why);
  bool for_host(const std::string& certificate_file, const std::string& key_file, std::string& why);

 private:
  friend class Tunnel;
  bool make(bool client, std::string& why);
  const OpenSsl* library_ = nullptr;
  Context* context_ = nullptr;
  Trust trust_;
  bool client_ = false;
};

enum class Handshake { done, late, plain, version, failed };

class Tunnel {
 public:
  // AES-GCM keys are good for some 2^24.5 records (RFC 8446, 5.5); ours are renewed well before.
  static constexpr u64 kRecordsAKey = 1u << 23;

  // The socket stays the caller's and becomes non-blocking.
  Tunnel(const Settings& settings, int wire, u64 records_a_key = kRecordsAKey);
  Tunnel(const Tunnel&) = delete;
  Tunnel& operator=(const Tunnel&) = delete;
  ~Tunnel();

  // Ends by `deadline_ns` (wire::monotonic_ns). `why` is for people unless it is `done`; `plain` is a peer
  // that speaks no TLS, of which nothing has been taken from the socket on the host's side.
  Handshake shake_hands(u64 deadline_ns, std::string& why);

  // Passes bytes until both directions have ended, or one has and kLingerMs have passed, or the connection is
  // gone. With `wait_for_peer` false the end of `plain` ends all.
  void relay(int plain, bool wait_for_peer);
  // How often our key was renewed.
  [[nodiscard]] u64 renewals() const { return renewals_; }

 private:
  struct Pipe;
  static constexpr int kLingerMs = 3000;

  void prepare_client();
  static Handshake late(std::string& why);
  Handshake failed(int result, std::string& why);
  bool trusted(std::string& why);
  bool read_wire(Pipe& in);
  bool write_plain(int plain, Pipe& in);
  bool read_plain(int plain, Pipe& out);
  bool write_wire(Pipe& out);
  void sleep(int plain, const Pipe& in, const Pipe& out, u64 deadline_ns);

  const Settings& settings_;
  const OpenSsl& library_;
  Ssl* ssl_ = nullptr;
  int wire_;
  u64 records_a_key_;
  u64 records_ = 0;  // written with the present key
  u64 renewals_ = 0;
  bool read_needs_write_ = false;  // what the last call waits for
  bool write_needs_read_ = false;
  bool write_needs_write_ = false;
  bool broken_ = false;
};

}  // namespace gpupool::tls
