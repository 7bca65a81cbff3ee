// Making and destroying contexts. The primary context of a device is retained at its first use and kept until
// the session ends: the client emulates release and reset, since those would drop the window's registration.
#include "hostd/worker/manual/context.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/capture.hpp"
#include "hostd/worker/populate.hpp"
#include "wire/cpp/device_info.hpp"
#include "wire/cpp/futex.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {
namespace {

constexpr u32 kMaxContexts = 64;  // each takes hundreds of MiB of the GPU
constexpr u32 kLimits = 16;       // as in wire::DeviceInfo

// One worker process serves one client, so this is the session's.
struct Opened {
  std::array<CUcontext, wire::kMaxDevices> primary{};
  CUcontext registration = nullptr;  // the primary context in which the window is registered
  u32 contexts = 0;
};
Opened g_opened;

wire::Handle by_index(wire::Handle handle) {
  if (handle.kind() != wire::HandleKind::context) throw wire::ProtocolError("not a context handle");
  return wire::Handle::make(wire::HandleKind::context, 0, handle.index());
}

// Retains the device's primary context once. The first one also carries the window's registration: it is
// portable, so every context sees it, and lives as long as that context, which is never released.
CUresult open_primary(Worker& worker, i32 device, CUcontext& context) {
  const u64 begin = wire::monotonic_ns();
  context = g_opened.primary[static_cast<size_t>(device)];
  if (context == nullptr) {
    const CUresult result = worker.driver.cuDevicePrimaryCtxRetain(&context, device_at(worker, device));
    if (result != CUDA_SUCCESS) return result;
    g_opened.primary[static_cast<size_t>(device)] = context;
  }
  if (g_opened.registration != nullptr) return CUDA_SUCCESS;
  g_opened.registration = context;
  const u64 made = wire::monotonic_ns();
  const CUresult result = worker.register_window(0, wire::kHeapOffset);
  worker.driver_makes_pages = page_present(worker.at(Worker::kLeftToDriver));
  log(LogLevel::info, "first context",
      "create_us=" + std::to_string((made - begin) / 1000) +
          " register_us=" + std::to_string((wire::monotonic_ns() - made) / 1000));
  if (result != CUDA_SUCCESS) {
    g_opened.registration = nullptr;
    log(LogLevel::error, "cannot register the window with the GPU", "CUDA error " + std::to_string(result));
    return result;
  }
  return CUDA_SUCCESS;
}

// Forgets the streams of a context that is gone. Whoever still waits for one of their words learns that there
// is nothing to wait for any more.
void end_streams(Worker& worker, u32 context) {
  std::vector<std::pair<wire::Handle, u64>> ended;
  worker.streams.each([&](wire::Handle stream, const StreamEntry& entry) {
    if (entry.context == context) ended.emplace_back(stream, entry.last_mark);
  });
  wire::Control& control = worker.window.control();
  for (const auto& [stream, last_mark] : ended) {
    worker.streams.take(stream);
    std::atomic<u64>& word = worker.window.word(stream.index()).value;
    if (word.load(std::memory_order_acquire) >= last_mark) continue;
    u32 none = 0;
    control.async_error.compare_exchange_strong(none, CUDA_ERROR_CONTEXT_IS_DESTROYED,
                                                std::memory_order_acq_rel);
    word.store(last_mark, std::memory_order_release);
  }
}

struct Wanted {
  wire::Handle handle;
  i32 device = 0;
  u32 flags = 0;
};

Wanted read_wanted(const Worker& worker, Request& request) {
  Wanted wanted;
  wanted.handle = by_index(request.in.get<wire::Handle>());
  wanted.device = request.in.get<i32>();
  wanted.flags = request.in.get<u32>();
  request.in.finish();
  device_at(worker, wanted.device);
  return wanted;
}

}  // namespace

void describe_context(const DriverApi& driver, wire::Writer& out) {
  int least = 0;
  int greatest = 0;
  if (driver.cuCtxGetStreamPriorityRange(&least, &greatest) != CUDA_SUCCESS) least = greatest = 0;
  out.put<i32>(least);
  out.put<i32>(greatest);
  for (u32 i = 0; i < kLimits; ++i) {
    size_t value = 0;
    const bool known =
        i < CU_LIMIT_MAX && driver.cuCtxGetLimit(&value, static_cast<CUlimit>(i)) == CUDA_SUCCESS;
    out.put<u64>(known ? value : ~u64{0});
  }
}

bool is_primary(CUcontext context) {
  return context != nullptr && std::ranges::find(g_opened.primary, context) != g_opened.primary.end();
}

void put_context(Worker& worker, wire::Handle handle, CUcontext context) {
  worker.contexts.put(by_index(handle), context);
}

void forget_context(Worker& worker, wire::Handle handle) {
  worker.contexts.take(by_index(handle));
  end_streams(worker, handle.index());
}

CUcontext find_context(Worker& worker, wire::Handle handle) {
  const CUcontext* context = worker.contexts.find(by_index(handle));
  return context == nullptr ? nullptr : *context;
}

bool prepare_primary(Worker& worker) {
  CUcontext context = nullptr;
  const CUresult result = worker.driver.cuDevicePrimaryCtxRetain(&context, worker.devices.front());
  if (result == CUDA_SUCCESS)
    g_opened.primary[0] = context;
  else
    log(LogLevel::error, "no context ahead of need", "CUDA error " + std::to_string(result));
  return result == CUDA_SUCCESS;
}

CUcontext registration_context() {
  return g_opened.registration;
}

CUdevice device_at(const Worker& worker, i32 device) {
  if (device < 0 || static_cast<size_t>(device) >= worker.devices.size() ||
      device >= static_cast<i32>(wire::kMaxDevices))
    throw wire::ProtocolError("device ordinal out of range");
  return worker.devices[static_cast<size_t>(device)];
}

CUresult handle_cuDevicePrimaryCtxRetain(Worker& worker, Request& request) {
  const Wanted wanted = read_wanted(worker, request);
  const KeepCurrent keep(worker.driver);
  CUcontext context = nullptr;
  if (const CUresult result = open_primary(worker, wanted.device, context); result != CUDA_SUCCESS)
    return result;
  if (const CUresult result = worker.driver.cuCtxSetCurrent(context); result != CUDA_SUCCESS) return result;
  worker.contexts.put(wanted.handle, context);
  describe_context(worker.driver, *request.out);
  return CUDA_SUCCESS;
}

CUresult handle_cuCtxCreate_v2(Worker& worker, Request& request) {
  const Wanted wanted = read_wanted(worker, request);
  if (g_opened.contexts >= kMaxContexts) return CUDA_ERROR_OUT_OF_MEMORY;
  const KeepCurrent keep(worker.driver);
  CUcontext primary = nullptr;
  if (const CUresult result = open_primary(worker, wanted.device, primary); result != CUDA_SUCCESS)
    return result;
  CUcontext context = nullptr;
  const CUresult result =
      worker.driver.cuCtxCreate_v2(&context, wanted.flags, device_at(worker, wanted.device));
  if (result != CUDA_SUCCESS) return result;
  ++g_opened.contexts;
  worker.contexts.put(wanted.handle, context);
  describe_context(worker.driver, *request.out);
  // Creating pushes; the stack below must stay what the dispatcher knows.
  CUcontext popped = nullptr;
  return worker.driver.cuCtxPopCurrent_v2(&popped);
}

CUresult handle_cuCtxDestroy_v2(Worker& worker, Request& request) {
  const wire::Handle handle = by_index(request.in.get<wire::Handle>());
  request.in.finish();
  const CUcontext* found = worker.contexts.find(handle);
  if (found == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  const CUcontext context = *found;
  if (is_primary(context)) throw wire::ProtocolError("destruction of a primary context");
  if (worker.green_contexts.contains(handle.index()))
    throw wire::ProtocolError("destruction of a green context");
  worker.context_changed = true;
  abandon_captures(worker, handle.index());
  if (const CUresult result = worker.driver.cuCtxSetCurrent(context); result == CUDA_SUCCESS)
    empty_context(worker, handle.index());
  worker.contexts.take(handle);
  drop_modules(worker, handle.index());
  --g_opened.contexts;
  const CUresult result = worker.driver.cuCtxDestroy_v2(context);
  end_streams(worker, handle.index());
  // The driver's events go with the context; an honest client names them no more.
  worker.events.take_owned(handle.index(), [](wire::Handle, const EventEntry&) {});
  return result;
}

CUresult handle_cuCtxEnablePeerAccess(Worker& worker, Request& request) {
  const auto peer = request.in.get<wire::Handle>();
  const auto flags = request.in.get<u32>();
  request.in.finish();
  const CUcontext context = find_context(worker, peer);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return worker.driver.cuCtxEnablePeerAccess(context, flags);
}

CUresult handle_cuCtxDisablePeerAccess(Worker& worker, Request& request) {
  const auto peer = request.in.get<wire::Handle>();
  request.in.finish();
  const CUcontext context = find_context(worker, peer);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return worker.driver.cuCtxDisablePeerAccess(context);
}

}  // namespace gpupool::worker
