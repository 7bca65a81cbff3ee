#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "hostd/worker/populate.hpp"
#include "hostd/worker/worker.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

constexpr u64 kPage = 4096;
constexpr u64 kBytes = 9u << 20;

// Shared memory as the window is; its pages are there when somebody has touched them.
class Mapping {
 public:
  explicit Mapping(int rights) {
    const int fd = memfd_create("window", MFD_CLOEXEC);
    REQUIRE(ftruncate(fd, kBytes) == 0);
    base = static_cast<u8*>(mmap(nullptr, kBytes, rights, MAP_SHARED, fd, 0));
    close(fd);
    REQUIRE(base != MAP_FAILED);
  }
  ~Mapping() { munmap(base, kBytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Pages of [offset, +bytes) that are in memory.
  [[nodiscard]] u64 present(u64 offset, u64 bytes) const {
    std::vector<unsigned char> pages(bytes / kPage);
    REQUIRE(mincore(base + offset, bytes, pages.data()) == 0);
    return static_cast<u64>(std::count_if(pages.begin(), pages.end(), [](u8 page) { return page & 1; }));
  }

  u8* base = nullptr;
};

u64 g_present = 0;  // pages that were there when the driver registered them

// A worker without contexts: registering happens in no context, which this driver does not mind.
void prepare(Worker& worker, u8* window) {
  worker.window = {window, wire::kWindowMinBytes};
  worker.driver.cuCtxGetCurrent = [](CUcontext* context) {
    *context = nullptr;
    return CUDA_SUCCESS;
  };
  worker.driver.cuCtxSetCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  worker.driver.cuMemHostRegister_v2 = [](void* address, size_t bytes, unsigned int) {
    g_present = 0;
    for (u64 at = 0; at < bytes; at += kPage) g_present += page_present(static_cast<u8*>(address) + at);
    return CUDA_SUCCESS;
  };
  worker.driver.cuMemHostGetDevicePointer_v2 = [](CUdeviceptr* device, void* address, unsigned int) {
    *device = reinterpret_cast<CUdeviceptr>(address);
    return CUDA_SUCCESS;
  };
}

}  // namespace

TEST_CASE("a driver that needs pages finds them when it registers a segment, another does not") {
  for (const bool needs : {true, false}) {
    auto* window = static_cast<u8*>(mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                                         MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    Worker worker;
    prepare(worker, window);
    worker.driver_makes_pages = needs;
    wire::Writer message;
    message.put<u64>(wire::kHeapOffset);
    message.put<u64>(1 << 20);
    Request request;
    request.in = wire::Reader(message.bytes());
    CHECK(handle_window_register(worker, request) == CUDA_SUCCESS);
    CHECK(g_present == (needs ? (1 << 20) / kPage : 0));
    munmap(window, wire::kWindowMinBytes);
  }
}

TEST_CASE("pages are made, all that were asked for and no others, and what was written stays") {
  for (const u32 threads : {1u, 4u, 64u}) {
    const Mapping mapping(PROT_READ | PROT_WRITE);
    mapping.base[3 * kPage + 5] = 77;
    CHECK(mapping.present(0, kBytes) == 1);
    make_pages(mapping.base + kPage, (7u << 20) + kPage, threads);
    CHECK(mapping.present(kPage, (7u << 20) + kPage) == (7u << 20) / kPage + 1);
    CHECK(mapping.present(0, kPage) == 0);
    CHECK(mapping.present((7u << 20) + 2 * kPage, 1u << 20) == 0);
    CHECK(mapping.base[3 * kPage + 5] == 77);
    CHECK(std::count(mapping.base + kPage, mapping.base + (7u << 20), 0) == (7u << 20) - kPage - 1);
  }
}

TEST_CASE("memory whose pages cannot be made is left alone") {
  const Mapping mapping(PROT_READ);
  make_pages(mapping.base, kBytes, 4);
  CHECK(mapping.present(0, kBytes) == 0);
  make_pages(mapping.base, 0, 4);
}

TEST_CASE("a mapping that asks for huge pages is one like others") {
  const Mapping mapping(PROT_READ | PROT_WRITE);
  prefer_huge_pages(mapping.base, kBytes);
  make_pages(mapping.base, 1u << 20, 2);
  CHECK(mapping.present(0, 1u << 20) == (1u << 20) / kPage);
  CHECK(mapping.base[kPage] == 0);
}

}  // namespace gpupool::worker
