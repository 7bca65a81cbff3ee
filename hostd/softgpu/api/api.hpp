// What every file of the software GPU's libcuda shares: how an entry point is written, how it fails, how it
// logs.
//
// An entry point is `GPUPOOL_CUDA CUresult cuX(...) { return call([&] { ... }); }`. Inside, errors are thrown
// as Error and nothing ever leaves as an exception. Only functions that do what they say are exported: a
// caller that looks symbols up by name sees at once what is missing.
#pragma once

#include <cuda.h>

#include <exception>
#include <new>
#include <type_traits>

#include "wire/cpp/types.hpp"

// The header declares without visibility and the library is built hidden: the definition makes it visible.
#define GPUPOOL_CUDA extern "C" __attribute__((visibility("default")))

namespace gpupool::softgpu {

// Carries a driver result out of an entry point's body.
struct Error {
  CUresult result;
};

[[noreturn]] inline void fail(CUresult result) {
  throw Error{result};
}
inline void require(bool condition, CUresult otherwise = CUDA_ERROR_INVALID_VALUE) {
  if (!condition) fail(otherwise);
}

// One line on stderr, prefixed with the library's name. printf format.
__attribute__((format(printf, 1, 2))) void log_line(const char* format, ...);

bool initialized();  // cuInit has succeeded

// Runs `body` as an entry point that needs no cuInit. A body returns nothing (CUDA_SUCCESS) or a CUresult.
template <typename F>
CUresult call_before_init(F&& body) noexcept {
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<F>>) {
      body();
      return CUDA_SUCCESS;
    } else {
      return body();
    }
  } catch (const Error& error) {
    return error.result;
  } catch (const std::bad_alloc&) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    log_line("internal error: %s", error.what());
    return CUDA_ERROR_UNKNOWN;
  }
}

// Runs `body` as an entry point.
template <typename F>
CUresult call(F&& body) noexcept {
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  return call_before_init(static_cast<F&&>(body));
}

}  // namespace gpupool::softgpu
