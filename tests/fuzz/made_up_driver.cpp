// A driver that does nothing, so that a hundred thousand sessions a second can be decoded.
#include "fuzz_entries.hpp"  // generated
#include "tests/fuzz/play.hpp"

namespace gpupool::fuzz {
namespace {

u64 g_next = 0x10'0000;

// A result that is a new object: a pointer to a pointer to one of the driver's incomplete types.
template <typename T>
concept Incomplete = !requires { sizeof(T); };

template <typename T>
void fill(T&&) {}
template <Incomplete T>
void fill(T** object) {
  if (object != nullptr) *object = reinterpret_cast<T*>(g_next += 16);
}
void fill(CUdeviceptr* address) {
  if (address != nullptr) *address = g_next += 512;
}

template <typename... Arguments>
void make_up(CUresult (*&function)(Arguments...)) {
  function = [](Arguments... arguments) {
    (fill(arguments), ...);
    return CUDA_SUCCESS;
  };
}

}  // namespace

void make_up_driver(worker::DriverApi& driver) {
  worker::each_driver_function(driver, [](auto& function, const char*) { make_up(function); });
  // A list that must end.
  driver.cuFuncGetParamInfo = [](CUfunction, size_t index, size_t* offset, size_t* size) {
    if (index != 0) return CUDA_ERROR_INVALID_VALUE;
    *offset = 0;
    *size = 8;
    return CUDA_SUCCESS;
  };
  driver.cuKernelGetParamInfo = [](CUkernel, size_t index, size_t* offset, size_t* size) {
    if (index != 0) return CUDA_ERROR_INVALID_VALUE;
    *offset = 0;
    *size = 8;
    return CUDA_SUCCESS;
  };
  // Registered host memory has one address on both sides.
  driver.cuMemHostGetDevicePointer_v2 = [](CUdeviceptr* device, void* host, unsigned) {
    *device = reinterpret_cast<CUdeviceptr>(host);
    return CUDA_SUCCESS;
  };
}

}  // namespace gpupool::fuzz
