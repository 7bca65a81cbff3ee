// Names and descriptions of every CUresult of cuda.h 13.0. The descriptions are ours, as short as the
// driver's.
#include <algorithm>
#include <iterator>

#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

struct ErrorText {
  CUresult error;
  const char* name;
  const char* text;
};

// clang-format off
#define GPUPOOL_ERROR(name, text) {name, #name, text}
constexpr ErrorText kErrors[] = {
    GPUPOOL_ERROR(CUDA_SUCCESS, "no error"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    GPUPOOL_ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    GPUPOOL_ERROR(CUDA_ERROR_DEINITIALIZED, "driver shutting down"),
    GPUPOOL_ERROR(CUDA_ERROR_PROFILER_DISABLED, "profiler is disabled for this run"),
    GPUPOOL_ERROR(CUDA_ERROR_PROFILER_NOT_INITIALIZED, "profiler is not initialized"),
    GPUPOOL_ERROR(CUDA_ERROR_PROFILER_ALREADY_STARTED, "profiler was started already"),
    GPUPOOL_ERROR(CUDA_ERROR_PROFILER_ALREADY_STOPPED, "profiler was stopped already"),
    GPUPOOL_ERROR(CUDA_ERROR_STUB_LIBRARY, "the loaded CUDA driver is a stub library"),
    GPUPOOL_ERROR(CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER, "this call needs a newer driver"),
    GPUPOOL_ERROR(CUDA_ERROR_DEVICE_UNAVAILABLE, "the device is busy or unavailable"),
    GPUPOOL_ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    GPUPOOL_ERROR(CUDA_ERROR_DEVICE_NOT_LICENSED, "the device has no valid Grid license"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_IMAGE, "the device kernel image is invalid"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    GPUPOOL_ERROR(CUDA_ERROR_CONTEXT_ALREADY_CURRENT, "the context is current already"),
    GPUPOOL_ERROR(CUDA_ERROR_MAP_FAILED, "mapping or registering a resource failed"),
    GPUPOOL_ERROR(CUDA_ERROR_UNMAP_FAILED, "unmapping or unregistering a resource failed"),
    GPUPOOL_ERROR(CUDA_ERROR_ARRAY_IS_MAPPED, "the array is mapped"),
    GPUPOOL_ERROR(CUDA_ERROR_ALREADY_MAPPED, "the resource is mapped already"),
    GPUPOOL_ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    GPUPOOL_ERROR(CUDA_ERROR_ALREADY_ACQUIRED, "the resource is acquired already"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_MAPPED, "the resource is not mapped"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_MAPPED_AS_ARRAY, "the resource is not mapped as an array"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_MAPPED_AS_POINTER, "the resource is not mapped as a pointer"),
    GPUPOOL_ERROR(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"),
    GPUPOOL_ERROR(CUDA_ERROR_UNSUPPORTED_LIMIT, "the device does not support this limit"),
    GPUPOOL_ERROR(CUDA_ERROR_CONTEXT_ALREADY_IN_USE, "the context is in exclusive use by another thread"),
    GPUPOOL_ERROR(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "peer access is not supported between these two devices"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_GRAPHICS_CONTEXT, "invalid OpenGL or DirectX context"),
    GPUPOOL_ERROR(CUDA_ERROR_NVLINK_UNCORRECTABLE, "uncorrectable NVLink error encountered"),
    GPUPOOL_ERROR(CUDA_ERROR_JIT_COMPILER_NOT_FOUND, "the PTX JIT compiler library was not found"),
    GPUPOOL_ERROR(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the PTX was compiled with an unsupported toolchain"),
    GPUPOOL_ERROR(CUDA_ERROR_JIT_COMPILATION_DISABLED, "PTX JIT compilation is disabled"),
    GPUPOOL_ERROR(CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY, "the device does not support this execution affinity"),
    GPUPOOL_ERROR(CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC, "the PTX calls cudaDeviceSynchronize on the device, which is not supported"),
    GPUPOOL_ERROR(CUDA_ERROR_CONTAINED, "an exception on the device was contained; the process must end to use CUDA again"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_SOURCE, "the device kernel source is invalid"),
    GPUPOOL_ERROR(CUDA_ERROR_FILE_NOT_FOUND, "file not found"),
    GPUPOOL_ERROR(CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND, "a symbol of a shared object was not resolved"),
    GPUPOOL_ERROR(CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, "a shared object failed to initialize"),
    GPUPOOL_ERROR(CUDA_ERROR_OPERATING_SYSTEM, "a call to the operating system failed"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    GPUPOOL_ERROR(CUDA_ERROR_ILLEGAL_STATE, "a resource is not in a valid state for this operation"),
    GPUPOOL_ERROR(CUDA_ERROR_LOSSY_QUERY, "the query would lose information about the object"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    GPUPOOL_ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    GPUPOOL_ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    GPUPOOL_ERROR(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    GPUPOOL_ERROR(CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING, "the launch uses an incompatible texturing mode"),
    GPUPOOL_ERROR(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is enabled already"),
    GPUPOOL_ERROR(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access has not been enabled"),
    GPUPOOL_ERROR(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, "the primary context is active already"),
    GPUPOOL_ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context is destroyed"),
    GPUPOOL_ERROR(CUDA_ERROR_ASSERT, "device-side assert triggered"),
    GPUPOOL_ERROR(CUDA_ERROR_TOO_MANY_PEERS, "the hardware can give peer access to no more devices"),
    GPUPOOL_ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the memory range is registered already"),
    GPUPOOL_ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "the pointer does not belong to a registered memory range"),
    GPUPOOL_ERROR(CUDA_ERROR_HARDWARE_STACK_ERROR, "hardware stack error"),
    GPUPOOL_ERROR(CUDA_ERROR_ILLEGAL_INSTRUCTION, "an illegal instruction was encountered"),
    GPUPOOL_ERROR(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_ADDRESS_SPACE, "an operation does not support this address space"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_PC, "invalid program counter"),
    GPUPOOL_ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    GPUPOOL_ERROR(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "too many blocks in cooperative launch"),
    GPUPOOL_ERROR(CUDA_ERROR_TENSOR_MEMORY_LEAK, "a kernel ended without freeing its tensor memory"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    GPUPOOL_ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    GPUPOOL_ERROR(CUDA_ERROR_SYSTEM_NOT_READY, "the system is not ready to start CUDA work"),
    GPUPOOL_ERROR(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "the versions of the display driver and the CUDA driver do not match"),
    GPUPOOL_ERROR(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "the device does not support forward compatibility"),
    GPUPOOL_ERROR(CUDA_ERROR_MPS_CONNECTION_FAILED, "no connection to the MPS control daemon or server"),
    GPUPOOL_ERROR(CUDA_ERROR_MPS_RPC_FAILURE, "a remote procedure call between MPS server and client failed"),
    GPUPOOL_ERROR(CUDA_ERROR_MPS_SERVER_NOT_READY, "the MPS server takes no new clients yet"),
    GPUPOOL_ERROR(CUDA_ERROR_MPS_MAX_CLIENTS_REACHED, "the MPS server has no room for another client"),
    GPUPOOL_ERROR(CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED, "the MPS server has no room for another connection"),
    GPUPOOL_ERROR(CUDA_ERROR_MPS_CLIENT_TERMINATED, "the MPS server terminated this client"),
    GPUPOOL_ERROR(CUDA_ERROR_CDP_NOT_SUPPORTED, "this configuration does not support CUDA Dynamic Parallelism"),
    GPUPOOL_ERROR(CUDA_ERROR_CDP_VERSION_MISMATCH, "versions of CUDA Dynamic Parallelism are mixed in an unsupported way"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "the operation would merge two separate captures"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture was not begun in this stream"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "the capture has a fork that was not joined"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a dependency would cross the boundary of the capture"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the operation would depend implicitly on a capturing blocking stream"),
    GPUPOOL_ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    GPUPOOL_ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture must end in the thread that began it"),
    GPUPOOL_ERROR(CUDA_ERROR_TIMEOUT, "the wait timed out"),
    GPUPOOL_ERROR(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "the executable graph cannot be updated with these changes"),
    GPUPOOL_ERROR(CUDA_ERROR_EXTERNAL_DEVICE, "an asynchronous error occurred on a device outside of CUDA"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_CLUSTER_SIZE, "the kernel's cluster is misconfigured"),
    GPUPOOL_ERROR(CUDA_ERROR_FUNCTION_NOT_LOADED, "the function is not loaded"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_RESOURCE_TYPE, "a resource has the wrong type for this operation"),
    GPUPOOL_ERROR(CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, "a resource is insufficient or does not apply to this operation"),
    GPUPOOL_ERROR(CUDA_ERROR_KEY_ROTATION, "an error occurred during key rotation"),
    GPUPOOL_ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef GPUPOOL_ERROR
// clang-format on

constexpr bool by_number(const ErrorText& a, const ErrorText& b) {
  return a.error < b.error;
}
static_assert(std::is_sorted(std::begin(kErrors), std::end(kErrors), by_number));

const ErrorText* find(CUresult error) {
  const ErrorText* found =
      std::lower_bound(std::begin(kErrors), std::end(kErrors), ErrorText{error, "", ""}, by_number);
  return found != std::end(kErrors) && found->error == error ? found : nullptr;
}

}  // namespace

namespace api {

CUresult cuGetErrorName(CUresult error, const char** name) {
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const ErrorText* found = find(error);
  *name = found == nullptr ? nullptr : found->name;
  return found == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const ErrorText* found = find(error);
  *text = found == nullptr ? nullptr : found->text;
  return found == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
