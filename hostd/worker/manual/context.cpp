// Making and destroying contexts. The primary context of a device is retained at its first use and kept until
// the session ends: the client emulates release and reset, since those would drop the window's registration.
#include "hostd/worker/manual/context.hpp"

#include <array>
#include <vector>

#include "hostd/worker/log.hpp"
#include "wire/cpp/device_info.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {
namespace {

constexpr u32 kMaxContexts = 64;  // each takes hundreds of MiB of the GPU
constexpr u32 kLimits = 16;       // as in wire::DeviceInfo

// One worker process serves one client, so this is the session's.
struct Opened {
  std::array<CUcontext, wire::kMaxDevices> primary{};
  bool window_registered = false;
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
  context = g_opened.primary[static_cast<size_t>(device)];
  if (context == nullptr) {
    const CUresult result = worker.driver.cuDevicePrimaryCtxRetain(&context, device_at(worker, device));
    if (result != CUDA_SUCCESS) return result;
    g_opened.primary[static_cast<size_t>(device)] = context;
  }
  if (g_opened.window_registered) return CUDA_SUCCESS;
  CUresult result = worker.driver.cuCtxSetCurrent(context);
  if (result == CUDA_SUCCESS) result = worker.register_window(0, wire::kHeapOffset);
  if (result != CUDA_SUCCESS) {
    log(LogLevel::error, "cannot register the window with the GPU", "CUDA error " + std::to_string(result));
    return result;
  }
  g_opened.window_registered = true;
  return CUDA_SUCCESS;
}

// What the client keeps about a context; the other end is read_description() in
// guest/runtime/manual/context.cpp.
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

CUcontext find_context(Worker& worker, wire::Handle handle) {
  const CUcontext* context = worker.contexts.find(by_index(handle));
  return context == nullptr ? nullptr : *context;
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
  for (const CUcontext primary : g_opened.primary)
    if (primary == context) throw wire::ProtocolError("destruction of a primary context");
  worker.contexts.take(handle);
  std::vector<wire::Handle> streams;  // they end with the context
  worker.streams.each([&](wire::Handle stream, const StreamEntry& entry) {
    if (entry.context == handle.index()) streams.push_back(stream);
  });
  for (const wire::Handle stream : streams) worker.streams.take(stream);
  drop_modules(worker, handle.index());
  worker.context_changed = true;
  --g_opened.contexts;
  return worker.driver.cuCtxDestroy_v2(context);
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
