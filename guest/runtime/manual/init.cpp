// cuInit and the driver's version.
#include <cstdlib>

#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/session.hpp"
#include "guest_api.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest::api {

CUresult cuInit(unsigned int flags) {
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  // A program that hides every device from itself needs no host, and must not complain about a missing one.
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible != nullptr && *visible == '\0') return CUDA_ERROR_NO_DEVICE;
  if (const CUresult result = Session::connect(); result != CUDA_SUCCESS) return result;
  const Session* session = Session::current();
  // Connected before a fork: CUDA cannot be used in the child.
  return session == nullptr ? CUDA_ERROR_NOT_INITIALIZED : open_devices(*session);
}

CUresult cuDriverGetVersion(int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Session* session = Session::current();
  *version = session == nullptr ? static_cast<int>(wire::kCudaVersion) : session->driver_version();
  return CUDA_SUCCESS;
}

}  // namespace gpupool::guest::api
