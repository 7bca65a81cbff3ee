// Memory and events of other processes.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "hostd/softgpu/api/capture.hpp"
#include "hostd/softgpu/api/event.hpp"
#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"
#include "hostd/softgpu/api/shared_file.hpp"

namespace gpupool::softgpu {

namespace {

// Memory that is open, by the address we gave. Opened again, it is the same address.
struct Opened {
  SharedHandle handle;
  u32 times = 0;
};

struct OpenedMemory {
  std::mutex mutex;
  std::map<u64, Opened> by_address;
};

OpenedMemory& opened_memory() {
  static auto* only = new OpenedMemory;
  return *only;
}

template <typename Opaque>
SharedHandle unwrap(const Opaque& opaque) {
  static_assert(sizeof(Opaque) == sizeof(SharedHandle));
  SharedHandle handle;
  std::memcpy(static_cast<void*>(&handle), &opaque, sizeof handle);
  return handle;
}

template <typename Opaque>
void wrap(Opaque& opaque, const SharedHandle& handle) {
  static_assert(sizeof(Opaque) == sizeof(SharedHandle));
  std::memcpy(&opaque, &handle, sizeof handle);
}

class SharedMarkOperation final : public Operation {
 public:
  std::shared_ptr<SharedRecords> records;
  u64 number = 0;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_EVENT_RECORD; }
  CUresult run(Context&) const override {
    std::atomic<u64>& completed = records->counters().completed;
    u64 before = completed.load();
    while (before < number && !completed.compare_exchange_weak(before, number)) {
    }
    return CUDA_SUCCESS;
  }
  bool runs_after_fault() const override { return true; }  // who waits in another process must not hang
};

// Nobody wakes us across processes: looks, with growing sleeps.
class SharedWaitOperation final : public Operation {
 public:
  std::shared_ptr<SharedRecords> records;
  u64 number = 0;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_WAIT_EVENT; }
  CUresult run(Context& context) const override {
    auto pause = std::chrono::microseconds(1);
    while (records->counters().completed.load() < number) {
      if (context.state() != CUDA_SUCCESS || context.destroyed.load()) break;
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, std::chrono::microseconds(1000));
    }
    return CUDA_SUCCESS;
  }
};

}  // namespace

SharedRecords::SharedRecords(std::shared_ptr<SharedFile> file)
    : file_(std::move(file)), counters_(static_cast<Counters*>(file_->map())) {}

SharedRecords::~SharedRecords() {
  munmap(counters_, file_->bytes());
}

std::shared_ptr<SharedRecords> SharedRecords::create() {
  return std::make_shared<SharedRecords>(SharedFile::create(kPageBytes));
}

void SharedRecords::record(Stream& stream) {
  auto operation = std::make_shared<SharedMarkOperation>();
  operation->records = shared_from_this();
  operation->number = counters_->issued.fetch_add(1) + 1;
  stream.submit(std::move(operation));
}

void SharedRecords::wait_on(Stream& stream) {
  if (complete()) return;
  auto operation = std::make_shared<SharedWaitOperation>();
  operation->records = shared_from_this();
  operation->number = counters_->issued.load();
  stream.submit(std::move(operation));
}

void SharedRecords::wait() const {
  const u64 number = counters_->issued.load();
  while (counters_->completed.load() < number) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

SharedHandle share_memory(const Allocation& allocation) {
  synchronize_everything();  // the memory is about to move into a file
  u64 offset = 0;
  const std::shared_ptr<SharedFile> file = arena().share(allocation.base, allocation.reserved, offset);
  return file->handle(offset, allocation.size, allocation.device);
}

Allocation open_shared_memory(const SharedHandle& handle, Context& context, MemoryKind kind) {
  require(handle.device < kMaxDevices);
  const auto file = SharedFile::open(handle);
  Allocation allocation;
  allocation.mapping = reinterpret_cast<u64>(file->map());
  allocation.mapping_bytes = file->bytes();
  allocation.base = allocation.mapping + handle.offset;
  allocation.size = allocation.reserved = handle.size;
  allocation.kind = kind;
  allocation.device = device_of(static_cast<int>(handle.device)).ordinal;
  allocation.context = context.handle;
  allocation.context_id = context.id;
  require(memory_table().insert(allocation), CUDA_ERROR_UNKNOWN);
  return allocation;
}

GPUPOOL_CUDA CUresult cuIpcGetMemHandle(CUipcMemHandle* out, CUdeviceptr address) {
  return call([&] {
    require(out != nullptr);
    current_context();
    const auto found = memory_table().find(address);
    require(found && found->kind == MemoryKind::device);
    wrap(*out, share_memory(*found));
  });
}

GPUPOOL_CUDA CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* out, CUipcMemHandle opaque, unsigned int flags) {
  return call([&] {
    require(out != nullptr && (flags & ~static_cast<u32>(CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)) == 0);
    const auto context = current_context();
    const SharedHandle handle = unwrap(opaque);
    OpenedMemory& opened = opened_memory();
    const std::lock_guard lock(opened.mutex);
    for (auto& [address, one] : opened.by_address)
      if (std::memcmp(&one.handle, &handle, sizeof handle) == 0) {
        ++one.times;
        *out = address;
        return;
      }
    const Allocation allocation = open_shared_memory(handle, *context, MemoryKind::imported);
    opened.by_address[allocation.base] = Opened{handle, 1};
    *out = allocation.base;
  });
}

GPUPOOL_CUDA CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  return call([&] {
    current_context();
    OpenedMemory& opened = opened_memory();
    const std::lock_guard lock(opened.mutex);
    const auto found = opened.by_address.find(address);
    require(found != opened.by_address.end());
    if (--found->second.times != 0) return;
    opened.by_address.erase(found);
    synchronize_everything();
    if (const auto taken = memory_table().take(address)) release_device(*taken);
  });
}

GPUPOOL_CUDA CUresult cuIpcGetEventHandle(CUipcEventHandle* out, CUevent handle) {
  return call([&] {
    require(out != nullptr);
    const auto event = events().get(handle);
    require(event->shared != nullptr, CUDA_ERROR_INVALID_HANDLE);
    wrap(*out, event->shared->file().handle(0, kPageBytes, event->context->device->ordinal));
  });
}

GPUPOOL_CUDA CUresult cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle opaque) {
  return call([&] {
    require(out != nullptr);
    auto event = std::make_shared<Event>();
    event->context = current_context();
    event->flags = CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING;
    event->shared = std::make_shared<SharedRecords>(SharedFile::open(unwrap(opaque)));
    *out = events().add(std::move(event));
  });
}

}  // namespace gpupool::softgpu
