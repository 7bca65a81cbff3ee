// From an image, whatever its form, to a program that the engine can run.
#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/module.hpp"

namespace gpupool::softgpu {

namespace {

constexpr u32 kElfMagic = 0x464c457f;
constexpr u32 kFatbinMagic = 0xba55ed50;
constexpr u32 kWrapperMagic = 0x466243b1;  // fatbinary_section.h of the toolkit: __fatBinC_Wrapper_t

// Tells the program why, in the buffer it gave for that, and whoever reads stderr.
void report(const JitOptions& jit, const std::string& text) {
  log_line("%s", text.c_str());
  char* buffer = nullptr;
  u64 size = 0;
  u32 size_at = jit.count;
  for (u32 i = 0; i < jit.count; ++i) {
    if (jit.options[i] == CU_JIT_ERROR_LOG_BUFFER) buffer = static_cast<char*>(jit.values[i]);
    if (jit.options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) {
      size = reinterpret_cast<u64>(jit.values[i]) & 0xffff'ffff;
      size_at = i;
    }
  }
  if (buffer == nullptr || size == 0) return;
  const u64 length = std::min<u64>(text.size(), size - 1);
  std::memcpy(buffer, text.data(), length);
  buffer[length] = 0;
  if (size_at < jit.count) jit.values[size_at] = reinterpret_cast<void*>(length);  // cuda.h: out, bytes used
}

// A load that went well leaves empty logs.
void report_nothing(const JitOptions& jit) {
  for (u32 i = 0; i < jit.count; ++i) {
    if ((jit.options[i] == CU_JIT_ERROR_LOG_BUFFER || jit.options[i] == CU_JIT_INFO_LOG_BUFFER) &&
        jit.values[i] != nullptr)
      *static_cast<char*>(jit.values[i]) = 0;
    if (jit.options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES ||
        jit.options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES)
      jit.values[i] = nullptr;
  }
}

// The two numbers of the .version directive as major * 10 + minor, 0 when there is none.
u32 ptx_version(const std::string& ptx) {
  const size_t at = ptx.find(".version");
  if (at == std::string::npos) return 0;
  u32 major = 0, minor = 0;
  if (std::sscanf(ptx.c_str() + at, ".version %u.%u", &major, &minor) != 2) return 0;
  return major * 10 + minor;
}

}  // namespace

std::string ptx_of(const void* image, const JitOptions& options) {
  require(image != nullptr);
  std::string ptx, error;
  if (!find_ptx(image, kArchitecture, ptx, error)) {
    u32 magic = 0;
    std::memcpy(&magic, image, strnlen(static_cast<const char*>(image), 4) == 4 ? 4 : 1);
    const bool machine_code = magic == kElfMagic || magic == kFatbinMagic || magic == kWrapperMagic;
    report(options, "cannot load an image: " + error);
    fail(machine_code ? CUDA_ERROR_NO_BINARY_FOR_GPU : CUDA_ERROR_INVALID_IMAGE);
  }
  const u32 version = ptx_version(ptx);
  if (version == 0) {
    report(options, "cannot load an image: it is neither a fatbin nor PTX with a .version directive");
    fail(CUDA_ERROR_INVALID_IMAGE);
  }
  if (version > kMaxPtxVersion) {
    report(options, "cannot load PTX of version " + std::to_string(version / 10) + "." +
                        std::to_string(version % 10) + ": 9.0 is the newest this driver knows");
    fail(CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
  }
  return ptx;
}

std::shared_ptr<Program> program_of(const std::string& ptx, const JitOptions& options) {
  std::string error;
  std::shared_ptr<Program> program = load_program(ptx, error);
  if (!program) {
    report(options, "cannot load PTX: " + error);
    fail(CUDA_ERROR_INVALID_PTX);
  }
  for (const KernelInfo& kernel : program->kernels())
    if (kernel.target > kArchitecture) {
      report(options, "PTX for sm_" + std::to_string(kernel.target) +
                          " cannot run on this device (compute capability " + std::to_string(kComputeMajor) +
                          "." + std::to_string(kComputeMinor) + ")");
      fail(CUDA_ERROR_NO_BINARY_FOR_GPU);
    }
  report_nothing(options);
  return program;
}

}  // namespace gpupool::softgpu
