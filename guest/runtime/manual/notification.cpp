// Notifications of a device. The only kind there is tells a program that it is over its memory budget because
// the budget has shrunk (cuda.h, CU_ASYNC_NOTIFICATION_TYPE_OVER_BUDGET). A vGPU refuses memory beyond its
// quota and takes none back, so a registration is kept and never has a reason to fire.
#include <mutex>
#include <set>
#include <utility>

#include "guest/runtime/manual/device.hpp"
#include "guest_api.hpp"

struct CUasyncCallbackEntry_st {
  CUdevice device = 0;
  CUasyncCallback function = nullptr;
  void* data = nullptr;
};

namespace gpupool::guest {
namespace {

struct Registrations {
  std::mutex mutex;
  std::set<CUasyncCallbackHandle> handles;
};

Registrations& registrations() {
  static auto& all = *new Registrations();
  return all;
}

}  // namespace

namespace api {

CUresult cuDeviceRegisterAsyncNotification(CUdevice device, CUasyncCallback function, void* data,
                                           CUasyncCallbackHandle* out) {
  if (device_info(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (function == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Registrations& all = registrations();
  const std::lock_guard lock(all.mutex);
  *out = *all.handles.insert(new CUasyncCallbackEntry_st{device, function, data}).first;
  return CUDA_SUCCESS;
}

CUresult cuDeviceUnregisterAsyncNotification(CUdevice device, CUasyncCallbackHandle callback) {
  if (device_info(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  Registrations& all = registrations();
  const std::lock_guard lock(all.mutex);
  const auto found = all.handles.find(callback);
  if (found == all.handles.end() || (*found)->device != device) return CUDA_ERROR_INVALID_VALUE;
  delete *found;
  all.handles.erase(found);
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
