// Access between devices. What two devices can do to each other never changes: asked once, then remembered.
#include <array>
#include <atomic>

#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

// Question 0 is cuDeviceCanAccessPeer; n is CUdevice_P2PAttribute n.
constexpr u32 kQuestions = 8;
constexpr int kNotAsked = -1;
constexpr int kAskedBase =
    1;  // stored values are the answer plus this, so that zero-initialised means not asked

std::array<std::array<std::array<std::atomic<int>, kQuestions>, wire::kMaxDevices>, wire::kMaxDevices>
    g_answers;

CUresult ask(u32 question, CUdevice from, CUdevice to, int& value) {
  std::atomic<int>& known = g_answers[static_cast<size_t>(from)][static_cast<size_t>(to)][question];
  if (const int stored = known.load(std::memory_order_relaxed) - kAskedBase; stored != kNotAsked) {
    value = stored;
    return CUDA_SUCCESS;
  }
  Call call(question == 0 ? wire::Function::cuDeviceCanAccessPeer : wire::Function::cuDeviceGetP2PAttribute);
  if (question != 0) call.put<u32>(question);
  call.put<i32>(session_device(from));
  call.put<i32>(session_device(to));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  value = call.get<i32>();
  if (value >= 0) known.store(value + kAskedBase, std::memory_order_relaxed);
  return CUDA_SUCCESS;
}

// A peer must be a live context of another device.
CUresult check_peer(CUcontext handle, Context*& peer) {
  const Context* context = current_context();
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  peer = handle == nullptr ? nullptr : find(handle);
  return check_context(peer) == CUDA_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

}  // namespace

namespace api {

CUresult cuDeviceCanAccessPeer(int* can, CUdevice dev, CUdevice peer) {
  if (can == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(dev) == nullptr || device_info(peer) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (dev == peer) {
    *can = 0;
    return CUDA_SUCCESS;
  }
  return ask(0, dev, peer, *can);
}

CUresult cuDeviceGetP2PAttribute(int* value, CUdevice_P2PAttribute attribute, CUdevice from, CUdevice to) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(from) == nullptr || device_info(to) == nullptr || from == to)
    return CUDA_ERROR_INVALID_DEVICE;
  const auto question = static_cast<u32>(attribute);
  if (question == 0 || question >= kQuestions) return CUDA_ERROR_INVALID_VALUE;
  return ask(question, from, to, *value);
}

CUresult cuCtxEnablePeerAccess(CUcontext handle, unsigned int flags) {
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  Context* peer = nullptr;
  if (const CUresult result = check_peer(handle, peer); result != CUDA_SUCCESS) return result;
  if (peer->device == current_context()->device) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  Call call(wire::Function::cuCtxEnablePeerAccess);
  call.put<u64>(peer->handle.bits);
  call.put<u32>(flags);
  return call.wait();
}

CUresult cuCtxDisablePeerAccess(CUcontext handle) {
  Context* peer = nullptr;
  if (const CUresult result = check_peer(handle, peer); result != CUDA_SUCCESS) return result;
  if (peer->device == current_context()->device) return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
  Call call(wire::Function::cuCtxDisablePeerAccess);
  call.put<u64>(peer->handle.bits);
  return call.wait();
}

}  // namespace api
}  // namespace gpupool::guest
