// cuIpc*: memory and events of other sessions of this tenant on the same host. Handles hold tokens; what is
// behind them only the worker sees.
#include <map>
#include <mutex>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/event.hpp"
#include "guest/runtime/manual/kept_memory.hpp"
#include "guest/runtime/manual/share.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

// How often each address is open: the driver answers with the same one again, and counts.
struct Opened {
  std::mutex mutex;
  std::map<u64, u32> times;

  static Opened& instance() {
    static auto* opened = new Opened();
    return *opened;
  }
};

CUresult close_in_worker(u64 address) {
  Call call(wire::Function::cuIpcCloseMemHandle);
  call.put<u64>(address);
  return call.wait();
}

// Enters memory that the worker has opened. A range that the program uses for something else cannot be had:
// the driver would give the same address each time.
CUresult adopt_imported(u64 address, u64 size, Context& context) {
  Opened& opened = Opened::instance();
  const std::lock_guard lock(opened.mutex);
  u32& times = opened.times[address];
  if (times == 0) {
    Allocation allocation;
    allocation.kind = MemoryKind::imported;
    allocation.address = address;
    allocation.size = size;
    allocation.context = &context;
    allocation.device = context.device;
    if (!adopt_device_memory(allocation)) {
      opened.times.erase(address);
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
  }
  ++times;
  return CUDA_SUCCESS;
}

}  // namespace

void forget_imported(const Allocation& allocation) {
  Opened& opened = Opened::instance();
  const std::lock_guard lock(opened.mutex);
  const auto found = opened.times.find(allocation.address);
  if (found == opened.times.end()) return;
  for (u32 i = 0; i < found->second; ++i) static_cast<void>(close_in_worker(allocation.address));
  opened.times.erase(found);
}

namespace api {

CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr address) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  const std::optional<Allocation> allocation = address_space().find(address);
  // cuda.h: memory of cuMemAlloc; what was opened from another process cannot be passed on.
  const bool known =
      allocation && (allocation->kind == MemoryKind::device || allocation->kind == MemoryKind::global);
  if (!known) return CUDA_ERROR_INVALID_VALUE;
  never_keep(allocation->address);
  Call call(wire::Function::cuIpcGetMemHandle);
  call.put<u64>(address);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  write_token(*handle, wire::ShareKind::memory, call.get<wire::ShareToken>());
  return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* address, CUipcMemHandle handle, unsigned int flags) {
  Context* context = current_context();
  if (address == nullptr || (flags & ~CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) != 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  wire::ShareToken token;
  if (!read_token(handle, wire::ShareKind::memory, token)) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuIpcOpenMemHandle_v2);
  call.put(token);
  call.put(static_cast<u32>(flags));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto opened = call.get<u64>();
  const auto size = call.get<u64>();
  if (const CUresult result = adopt_imported(opened, size, *context); result != CUDA_SUCCESS) {
    log_line("memory of another process lies at 0x%llx, which this program uses for something else",
             static_cast<unsigned long long>(opened));
    close_in_worker(opened);
    return result;
  }
  *address = opened;
  return CUDA_SUCCESS;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  if (const CUresult result = check_context(current_context()); result != CUDA_SUCCESS) return result;
  if (const CUresult result = check_unsafe_call(); result != CUDA_SUCCESS) return result;
  Opened& opened = Opened::instance();
  const std::lock_guard lock(opened.mutex);
  const auto found = opened.times.find(address);
  if (found == opened.times.end()) return CUDA_ERROR_INVALID_VALUE;
  if (--found->second == 0) {
    opened.times.erase(found);
    address_space().take(address, {MemoryKind::imported});
  }
  return close_in_worker(address);
}

CUresult cuIpcGetEventHandle(CUipcEventHandle* handle, CUevent event_handle) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Event* event = find(event_handle);
  if (event == nullptr || !event->interprocess()) return CUDA_ERROR_INVALID_HANDLE;
  Call call(wire::Function::cuIpcGetEventHandle);
  call.put(event->handle);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  write_token(*handle, wire::ShareKind::event, call.get<wire::ShareToken>());
  return CUDA_SUCCESS;
}

CUresult cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle handle) {
  Context* context = current_context();
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  wire::ShareToken token;
  if (!read_token(handle, wire::ShareKind::event, token)) return CUDA_ERROR_INVALID_VALUE;
  return make_event(out, *context, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING, [&](const Event& event) {
    Call call(wire::Function::cuIpcOpenEventHandle);
    call.put(event.handle);
    call.put(token);
    return call.wait();
  });
}

}  // namespace api
}  // namespace gpupool::guest
