// `gpupool-bench-vsock-guest FOLDER CID ROUNDS`: what the relay of that VM's folder costs. One service, on
// FOLDER/vsock_7000, is talked to straight by its unix socket and by the relay, in turns; prints one JSON
// line with every round's numbers.
#include <csignal>
#include <thread>

#include "bench/native/vsock_front.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::bench {
namespace {

constexpr u32 kPort = 7000;
constexpr u32 kTrips = 5000, kWarm = 500;
constexpr size_t kBlock = 1 << 20, kBulk = 256 << 20;

// What a client asks for, in 16 bytes: so many messages of so many bytes back and forth, up, or down.
struct Order {
  u64 what = 0;  // 0: each comes back; 1: take them, answer one byte at the end; 2: send them
  u64 bytes = 0;
};

bool read_all(int from, char* to, size_t count) {
  while (count != 0) {
    const ssize_t got = read(from, to, count);
    if (got <= 0) return false;
    to += got;
    count -= static_cast<size_t>(got);
  }
  return true;
}
bool write_all(int to, const char* from, size_t count) {
  while (count != 0) {
    const ssize_t done = send(to, from, count, MSG_NOSIGNAL);
    if (done <= 0) return false;
    from += done;
    count -= static_cast<size_t>(done);
  }
  return true;
}

void serve(int client) {
  std::vector<char> block(kBlock);
  Order order;
  while (read_all(client, reinterpret_cast<char*>(&order), sizeof order)) {
    if (order.what == 0)
      for (u64 i = 0; i < order.bytes && read_all(client, block.data(), 1); ++i)
        write_all(client, block.data(), 1);
    if (order.what == 1) {
      for (u64 done = 0; done < order.bytes && read_all(client, block.data(), kBlock); done += kBlock)
        continue;
      write_all(client, block.data(), 1);
    }
    if (order.what == 2)
      for (u64 done = 0; done < order.bytes && write_all(client, block.data(), kBlock); done += kBlock)
        continue;
  }
  close(client);
}

void listen_at(const std::string& path) {
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", path.c_str());
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 8) != 0)
    give_up(path.c_str());
  std::thread([=] {
    for (int client; (client = accept(listener, nullptr, nullptr)) >= 0;) std::thread(serve, client).detach();
  }).detach();
}

struct Plain {
  int socket;
  void send(const char* data, size_t count) { write_all(socket, data, count); }
  void receive(char* data, size_t count) { read_all(socket, data, count); }
};

struct Numbers {
  double round_trip_us = 0, up_gb_s = 0, down_gb_s = 0;
};

template <typename Way>
Numbers measure(Way& way) {
  std::vector<char> block(kBlock, 'x');
  const auto order = [&](u64 what, u64 bytes) {
    const Order one{what, bytes};
    way.send(reinterpret_cast<const char*>(&one), sizeof one);
  };
  Numbers found;
  order(0, kTrips + kWarm);
  u64 began = 0;
  for (u32 i = 0; i < kTrips + kWarm; ++i) {
    if (i == kWarm) began = wire::monotonic_ns();
    way.send(block.data(), 1);
    way.receive(block.data(), 1);
  }
  found.round_trip_us = static_cast<double>(wire::monotonic_ns() - began) / kTrips / 1e3;
  began = wire::monotonic_ns();
  order(1, kBulk);
  for (size_t done = 0; done < kBulk; done += kBlock) way.send(block.data(), kBlock);
  way.receive(block.data(), 1);
  found.up_gb_s = static_cast<double>(kBulk) / static_cast<double>(wire::monotonic_ns() - began);
  began = wire::monotonic_ns();
  order(2, kBulk);
  for (size_t done = 0; done < kBulk; done += kBlock) way.receive(block.data(), kBlock);
  found.down_gb_s = static_cast<double>(kBulk) / static_cast<double>(wire::monotonic_ns() - began);
  return found;
}

void print(const char* name, const Numbers& one, const char* end) {
  std::printf("\"%s\": {\"round_trip_us\": %.3f, \"up_gb_s\": %.3f, \"down_gb_s\": %.3f}%s", name,
              one.round_trip_us, one.up_gb_s, one.down_gb_s, end);
}

int run(const std::string& folder, u64 cid, int rounds) {
  std::signal(SIGPIPE, SIG_IGN);
  listen_at(folder + "/vsock_" + std::to_string(kPort));
  VsockFront guest(folder, cid);
  guest.open(kPort);
  Plain plain{connect_to(folder + "/vsock_" + std::to_string(kPort))};
  std::printf("[");
  for (int round = 0; round < rounds; ++round) {
    std::printf("%s{", round == 0 ? "" : ", ");
    print("plain", measure(plain), ", ");
    print("relay", measure(guest), "}");
  }
  std::printf("]\n");
  guest.shut();
  return std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace gpupool::bench

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: gpupool-bench-vsock-guest FOLDER CID ROUNDS\n");
    return 2;
  }
  return gpupool::bench::run(argv[1], std::strtoull(argv[2], nullptr, 10), std::atoi(argv[3]));
}
