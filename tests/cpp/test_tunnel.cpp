// TLS tunnels against each other, with the real library: bytes, ends, and keys that are renewed on the way.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "wire/cpp/futex.hpp"
#include "wire/cpp/stream_io.hpp"
#include "wire/tls/tunnel.hpp"

namespace gpupool::test {
namespace {

// A certificate in a folder of its own; empty where there is no openssl command.
class Certificate {
 public:
  Certificate() {
    std::string name = std::filesystem::temp_directory_path() / "gpupool-tunnel-XXXXXX";
    folder_ = mkdtemp(name.data());
    const std::string command =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
        "-subj /CN=test -addext subjectAltName=DNS:host -keyout " +
        key() + " -out " + file() + " 2>/dev/null";
    made_ = std::system(command.c_str()) == 0;
  }
  ~Certificate() {
    unlink(file().c_str());
    unlink(key().c_str());
    rmdir(folder_.c_str());
  }
  [[nodiscard]] bool made() const { return made_; }
  [[nodiscard]] std::string file() const { return folder_ + "/certificate"; }
  [[nodiscard]] std::string key() const { return folder_ + "/key"; }

 private:
  std::string folder_;
  bool made_ = false;
};

u64 in_seconds(u64 seconds) {
  return wire::monotonic_ns() + seconds * 1'000'000'000;
}

// One end: a handshake, then a relay between the wire and a plain socket.
struct End {
  tls::Settings settings;
  int wire = -1;
  int plain[2] = {-1, -1};  // ours, the tunnel's
  tls::Handshake result = tls::Handshake::failed;
  std::string why;
  std::thread thread;
  u64 renewals = 0;

  void start(u64 records_a_key, bool wait_for_peer) {
    std::signal(SIGPIPE, SIG_IGN);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, plain) == 0);
    thread = std::thread([this, records_a_key, wait_for_peer] {
      {
        tls::Tunnel tunnel(settings, wire, records_a_key);
        result = tunnel.shake_hands(in_seconds(20), why);
        if (result == tls::Handshake::done) tunnel.relay(plain[1], wait_for_peer);
        renewals = tunnel.renewals();
      }
      close(plain[1]);
      close(wire);
    });
  }
  ~End() {
    if (plain[0] >= 0) close(plain[0]);
    if (thread.joinable()) thread.join();
  }
};

// Both ends of one connection, and bytes in both directions at the same time.
void exchange(u64 records_a_key, size_t bytes, u64 fewest_renewals = 0) {
  const Certificate certificate;
  if (!certificate.made()) return;
  int wires[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, wires) == 0);
  End client, host;
  std::string why;
  REQUIRE_MESSAGE(
      client.settings.for_client({.host = "host", .ca_file = certificate.file(), .fingerprint = ""}, why),
      why);
  REQUIRE_MESSAGE(host.settings.for_host(certificate.file(), certificate.key(), why), why);
  client.wire = wires[0];
  host.wire = wires[1];
  client.start(records_a_key, false);
  host.start(records_a_key, true);
  std::vector<u8> out(bytes), back(bytes), up(bytes), down(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    out[i] = static_cast<u8>(i * 7 + i / 251);
    back[i] = static_cast<u8>(i * 13 + i / 127);
  }
  std::thread sender([&] {
    iovec piece{out.data(), out.size()};
    wire::send_all(client.plain[0], &piece, 1);
  });
  std::thread answerer([&] {
    iovec piece{back.data(), back.size()};
    wire::send_all(host.plain[0], &piece, 1);
  });
  std::thread reader([&] { wire::read_all(host.plain[0], up.data(), up.size()); });
  CHECK(wire::read_all(client.plain[0], down.data(), down.size()));
  for (std::thread* one : {&sender, &answerer, &reader}) one->join();
  CHECK(up == out);
  CHECK(down == back);
  // The end of one is the end of both, after what it sent last.
  const u8 last = 42;
  CHECK(send(client.plain[0], &last, 1, MSG_NOSIGNAL) == 1);
  close(client.plain[0]);
  client.plain[0] = -1;
  u8 received[2];
  CHECK(recv(host.plain[0], received, sizeof received, MSG_WAITALL) == 1);
  CHECK(received[0] == last);
  for (End* one : {&client, &host}) {
    one->thread.join();
    CHECK(one->renewals >= fewest_renewals);
  }
}

}  // namespace

TEST_CASE("bytes pass a tunnel both ways at once") {
  exchange(tls::Tunnel::kRecordsAKey, 8u << 20);
}

TEST_CASE("keys are renewed on the way") {
  exchange(3, 4u << 20, 4);
}

TEST_CASE("a handshake that nobody answers ends in time") {
  int wires[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, wires) == 0);
  tls::Settings settings;
  std::string why;
  REQUIRE(settings.for_client({.host = "host", .ca_file = "", .fingerprint = std::string(32, 'x')}, why));
  tls::Tunnel tunnel(settings, wires[0]);
  const u64 start = wire::monotonic_ns();
  CHECK(tunnel.shake_hands(start + 300'000'000, why) == tls::Handshake::late);
  CHECK(wire::monotonic_ns() - start < 5'000'000'000);
  CHECK(why == "it took too long");
  for (const int wire : wires) close(wire);
}

TEST_CASE("fingerprints as people write them") {
  std::string parsed;
  std::string text;
  for (int i = 0; i < 32; ++i) text += "aB:";
  CHECK(tls::parse_fingerprint(text, parsed));
  CHECK(parsed == std::string(32, '\xab'));
  CHECK(tls::fingerprint_text(parsed).substr(0, 6) == "ababab");
  for (const char* wrong : {"", "ab", "xyz"}) CHECK(!tls::parse_fingerprint(wrong, parsed));
  CHECK(!tls::parse_fingerprint(text + "ab", parsed));
}

}  // namespace gpupool::test
