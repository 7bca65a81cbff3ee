// The two ends of a session against each other, in one process, so that ThreadSanitizer sees both: client
// threads and the transport's of the guest, the dispatcher, the mirror's threads and the GPU's of the worker.
// Everything but the driver is what runs in production.
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "guest_api.hpp"  // generated
#include "hostd/worker/dispatcher.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/stream_mirror.hpp"
#include "tests/cpp/toy_gpu.hpp"
#include "wire/cpp/descriptor_passing.hpp"
#include "wire/cpp/hello.hpp"
#include "wire/cpp/stream_io.hpp"

namespace gpupool::test {
namespace {

namespace api = guest::api;

constexpr int kThreads = 4;
constexpr int kRounds = 150;
constexpr size_t kBytes = 3 * 4096 + 5;
constexpr int kLargeRounds = 12;
constexpr size_t kLargeBytes = (3u << 20) + 5;  // over several connections

// hostd and the worker's main(), as far as a session needs them.
class Host {
 public:
  Host(wire::TransportKind transport, wire::ZeroCopyMode zero_copy)
      : transport_(transport), zero_copy_(zero_copy) {
    if (transport == wire::TransportKind::shm)
      listen_unix();
    else
      listen_tcp();
    std::thread([this] { serve(); }).detach();
  }
  ~Host() {
    if (folder_.empty()) return;
    unlink((folder_ + "/hostd.sock").c_str());
    rmdir(folder_.c_str());
  }
  [[nodiscard]] const std::string& endpoint() const { return endpoint_; }

 private:
  void listen_unix() {
    char name[] = "/tmp/gpupool-threads-XXXXXX";
    folder_ = mkdtemp(name);
    endpoint_ = "unix:" + folder_ + "/hostd.sock";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, endpoint_.c_str() + 5, sizeof address.sun_path - 1);
    listener_ = socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listener_, 1) == 0);
  }

  void listen_tcp() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listener_, 16) == 0);
    REQUIRE(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    endpoint_ = "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }

  // The lanes come first, in any order; each says which it is.
  int greet(wire::Hello& hello, std::vector<int>& lanes) {
    for (u32 came = 0; true;) {
      const int client = accept(listener_, nullptr, nullptr);
      u32 magic = 0;
      REQUIRE(recv(client, &magic, sizeof magic, MSG_PEEK | MSG_WAITALL) == sizeof magic);
      if (magic == wire::kHelloMagic) {
        wire::read_all(client, &hello, sizeof hello);
        first_ = client;
      } else {
        wire::LaneHello lane;
        wire::read_all(client, &lane, sizeof lane);
        lanes.resize(std::max<size_t>(lanes.size(), lane.index + 1));
        lanes[lane.index] = client;
        ++came;
      }
      if (first_ >= 0 && came == hello.lanes) return first_;
    }
  }

  void serve() {
    wire::Hello hello;
    std::vector<int> lanes;
    const int client = greet(hello, lanes);
    auto* worker = new worker::Worker;
    connect_toy_gpu(worker->driver);
    worker->devices = {0};
    worker->shared_memory = transport_ == wire::TransportKind::shm;
    worker->window.size = wire::kWindowMinBytes;
    wire::Welcome welcome;
    welcome.bytes = sizeof welcome;
    welcome.window_bytes = worker->window.size;
    welcome.driver_version = 13000;
    welcome.device_count = 1;
    if (worker->shared_memory) {
      const int fd = memfd_create("window", MFD_CLOEXEC);
      static_cast<void>(ftruncate(fd, static_cast<off_t>(worker->window.size)));
      send_with(client, welcome, fd);
      worker->window.base = wait_for_mapping(hello.window_base);
    } else {
      void* memory = mmap(nullptr, worker->window.size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      worker->window.base = static_cast<u8*>(memory);
      wire::WelcomeLanes granted{static_cast<u32>(lanes.size()), 0};
      welcome.bytes += static_cast<u32>(sizeof granted);
      iovec pieces[2] = {{&welcome, sizeof welcome}, {&granted, sizeof granted}};
      wire::send_all(client, pieces, 2);
      worker::start_stream_mirror(client, lanes, worker->window, zero_copy_, nullptr);
    }
    worker::Dispatcher(*worker).run();
  }

  static void send_with(int socket, const wire::Welcome& welcome, int fd) {
    wire::send_with_descriptor(socket, &welcome, sizeof welcome, fd, MSG_NOSIGNAL);
  }

  // Both ends live in one address space here: the worker uses the client's mapping, once it is there.
  static u8* wait_for_mapping(u64 base) {
    char start[24];
    std::snprintf(start, sizeof start, "%llx-", static_cast<unsigned long long>(base));
    while (true) {
      std::ifstream maps("/proc/self/maps");
      for (std::string line; std::getline(maps, line);)
        if (line.rfind(start, 0) == 0 && line.find(" rw-s ") != std::string::npos)
          return reinterpret_cast<u8*>(base);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  wire::TransportKind transport_;
  wire::ZeroCopyMode zero_copy_;
  std::string folder_, endpoint_;
  int listener_ = -1;
  int first_ = -1;
};

#define OK(call) REQUIRE((call) == CUDA_SUCCESS)

struct Counter {
  int calls = 0;  // the client's one host-function thread counts; read after a synchronisation
};

// Copies that other connections carry, pageable one way and the other.
void copy_large(CUstream stream, int number) {
  CUdeviceptr device = 0;
  OK(api::cuMemAlloc_v2(&device, kLargeBytes));
  std::vector<u8> out(kLargeBytes), in(kLargeBytes);
  for (int round = 0; round < kLargeRounds; ++round) {
    for (size_t i = 0; i < kLargeBytes; i += 4096) out[i] = static_cast<u8>(number * 50 + round + i / 4096);
    OK(api::cuMemcpyHtoDAsync_v2(device, out.data(), kLargeBytes, stream));
    OK(api::cuMemcpyDtoHAsync_v2(in.data(), device, kLargeBytes, stream));
    OK(api::cuStreamSynchronize(stream));
    REQUIRE(in == out);
  }
  OK(api::cuMemFree_v2(device));
}

// One client thread's program: copies both ways, events, host functions, its own stream and the shared ones.
void work(CUcontext context, int number) {
  OK(api::cuCtxSetCurrent(context));
  CUstream stream = nullptr;
  OK(api::cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CUevent event = nullptr;
  OK(api::cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  CUdeviceptr device = 0, other = 0;  // nothing orders the two streams: each has its own memory
  OK(api::cuMemAlloc_v2(&device, kBytes));
  OK(api::cuMemAlloc_v2(&other, kBytes));
  std::vector<u8> out(kBytes), in(kBytes);
  Counter counter;
  for (int round = 0; round < kRounds; ++round) {
    const auto value = static_cast<u8>(number * 50 + round);
    std::fill(out.begin(), out.end(), value);
    OK(api::cuMemcpyHtoDAsync_v2(device, out.data(), kBytes, stream));
    if (round % 3 == 0) OK(api::cuMemsetD8Async(device, static_cast<u8>(value + 1), 16, stream));
    if (round % 5 == 0)
      OK(api::cuLaunchHostFunc(stream, [](void* data) { ++static_cast<Counter*>(data)->calls; }, &counter));
    OK(api::cuEventRecord(event, stream));
    if (round % 7 == 0) OK(api::cuMemsetD8Async(other, value, 16, CU_STREAM_PER_THREAD));
    if (round % 7 == 0) OK(api::cuStreamSynchronize(CU_STREAM_PER_THREAD));
    OK(api::cuMemcpyDtoHAsync_v2(in.data(), device, kBytes, stream));
    OK(api::cuEventSynchronize(event));
    OK(api::cuStreamSynchronize(stream));
    REQUIRE(in[kBytes - 1] == value);
    REQUIRE(counter.calls == round / 5 + 1);
    const CUresult queried = api::cuStreamQuery(stream);
    REQUIRE((queried == CUDA_SUCCESS || queried == CUDA_ERROR_NOT_READY));
  }
  OK(api::cuMemFree_v2(device));
  OK(api::cuMemFree_v2(other));
  copy_large(stream, number);
  OK(api::cuEventDestroy_v2(event));
  OK(api::cuStreamDestroy_v2(stream));
}

void run(wire::TransportKind transport, wire::ZeroCopyMode zero_copy = wire::ZeroCopyMode::automatic) {
  worker::configure_log({.lowest = worker::LogLevel::warning}, 0);
  const Host host(transport, zero_copy);
  setenv("GPUPOOL_ENDPOINT", host.endpoint().c_str(), 1);
  setenv("GPUPOOL_TRANSPORT", transport == wire::TransportKind::shm ? "shm" : "tcp", 1);
  if (zero_copy == wire::ZeroCopyMode::always) setenv("GPUPOOL_TCP_ZEROCOPY", "always", 1);
  OK(api::cuInit(0));
  CUdevice device = 0;
  OK(api::cuDeviceGet(&device, 0));
  CUcontext context = nullptr;
  OK(api::cuDevicePrimaryCtxRetain(&context, device));
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, context, i);
  OK(api::cuCtxSetCurrent(context));
  for (int i = 0; i < kRounds; ++i) OK(api::cuCtxSynchronize());
  for (std::thread& thread : threads) thread.join();
  OK(api::cuCtxSynchronize());
}

}  // namespace

// The guest runtime has one session a process: test_programs.py runs each of these alone.
TEST_CASE("threads over shared memory" * doctest::skip()) {
  run(wire::TransportKind::shm);
}

TEST_CASE("threads over a stream" * doctest::skip()) {
  run(wire::TransportKind::tcp);
}

TEST_CASE("threads over a stream that sends by reference" * doctest::skip()) {
  run(wire::TransportKind::tcp, wire::ZeroCopyMode::always);
}

}  // namespace gpupool::test
