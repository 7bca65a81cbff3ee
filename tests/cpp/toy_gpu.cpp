#include "tests/cpp/toy_gpu.hpp"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "fuzz_entries.hpp"  // generated: each_driver_function

namespace gpupool::test {
namespace {

// Work in order, by one thread.
class Lane {
 public:
  void put(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
    if (!std::exchange(started_, true)) std::thread([this] { run(); }).detach();
    changed_.notify_all();
  }
  bool idle() {
    const std::lock_guard lock(mutex_);
    return work_.empty();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return work_.empty(); });
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return !work_.empty(); });
      const std::function<void()> work = work_.front();
      lock.unlock();
      work();
      lock.lock();
      work_.pop_front();
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  bool started_ = false;
};

struct Memory {
  std::mutex mutex;
  std::map<CUdeviceptr, std::vector<u8>> blocks;
  // Where ThreadSanitizer lets a program map: the guest keeps the addresses of device memory free.
  CUdeviceptr next = 0x60'0000'0000;
};

// Both live as long as the process: threads may still run when it ends.
Memory& memory() {
  static auto& only = *new Memory;
  return only;
}
Lane* lane_of(CUstream stream) {
  static auto& legacy = *new Lane;
  return stream == nullptr || stream == CU_STREAM_LEGACY ? &legacy : reinterpret_cast<Lane*>(stream);
}

// The bytes behind a device address, or null. Blocks are never moved while they live.
u8* behind(CUdeviceptr address, size_t bytes) {
  const std::lock_guard lock(memory().mutex);
  auto block = memory().blocks.upper_bound(address);
  if (block == memory().blocks.begin()) return nullptr;
  --block;
  const u64 offset = address - block->first;
  return offset + bytes <= block->second.size() ? block->second.data() + offset : nullptr;
}

CUresult put(CUstream stream, std::function<void()> work) {
  lane_of(stream)->put(std::move(work));
  return CUDA_SUCCESS;
}

CUresult copy(CUstream stream, void* to, const void* from, size_t bytes) {
  if (to == nullptr || from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return put(stream, [=] { std::memcpy(to, from, bytes); });
}

void connect_memory(worker::DriverApi& driver) {
  driver.cuMemAlloc_v2 = [](CUdeviceptr* address, size_t bytes) {
    const std::lock_guard lock(memory().mutex);
    *address = memory().next;
    memory().next += bytes + 0x10'0000;
    memory().blocks[*address].resize(bytes);
    return CUDA_SUCCESS;
  };
  driver.cuMemFree_v2 = [](CUdeviceptr address) {
    const std::lock_guard lock(memory().mutex);
    return memory().blocks.erase(address) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  driver.cuMemcpyHtoDAsync_v2 = [](CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    return copy(stream, behind(to, bytes), from, bytes);
  };
  driver.cuMemcpyDtoHAsync_v2 = [](void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy(stream, to, behind(from, bytes), bytes);
  };
  driver.cuMemsetD8Async = [](CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    u8* const place = behind(to, bytes);
    if (place == nullptr) return CUDA_ERROR_INVALID_VALUE;
    return put(stream, [=] { std::memset(place, value, bytes); });
  };
  driver.cuMemHostGetDevicePointer_v2 = [](CUdeviceptr* device, void* host, unsigned) {
    *device = reinterpret_cast<CUdeviceptr>(host);
    return CUDA_SUCCESS;
  };
}

void connect_streams(worker::DriverApi& driver) {
  driver.cuStreamCreate = [](CUstream* stream, unsigned) {
    *stream = reinterpret_cast<CUstream>(new Lane);
    return CUDA_SUCCESS;
  };
  driver.cuStreamCreateWithPriority = [](CUstream* stream, unsigned, int) {
    *stream = reinterpret_cast<CUstream>(new Lane);
    return CUDA_SUCCESS;
  };
  driver.cuStreamSynchronize = [](CUstream stream) {
    lane_of(stream)->wait();
    return CUDA_SUCCESS;
  };
  driver.cuStreamQuery = [](CUstream stream) {
    return lane_of(stream)->idle() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  };
  driver.cuStreamWriteValue64_v2 = [](CUstream stream, CUdeviceptr word, cuuint64_t value, unsigned) {
    return put(stream,
               [=] { reinterpret_cast<std::atomic<u64>*>(word)->store(value, std::memory_order_release); });
  };
  driver.cuLaunchHostFunc = [](CUstream stream, CUhostFn function, void* data) {
    return put(stream, [=] { function(data); });
  };
}

}  // namespace

void connect_toy_gpu(worker::DriverApi& driver) {
  worker::each_driver_function(driver, []<typename... A>(CUresult (*&function)(A...), const char*) {
    function = [](A...) { return CUDA_SUCCESS; };
  });
  driver.cuDeviceGetAttribute = [](int* value, CUdevice_attribute, CUdevice) {
    *value = 1;
    return CUDA_SUCCESS;
  };
  driver.cuDevicePrimaryCtxRetain = [](CUcontext* context, CUdevice) {
    *context = reinterpret_cast<CUcontext>(0x1000);
    return CUDA_SUCCESS;
  };
  driver.cuEventCreate = [](CUevent* event, unsigned) {
    *event = reinterpret_cast<CUevent>(0x2000);
    return CUDA_SUCCESS;
  };
  connect_memory(driver);
  connect_streams(driver);
}

}  // namespace gpupool::test
