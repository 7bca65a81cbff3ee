// What the software GPU's API side asks of its execution engine: turn an image into a program, run kernels of
// it. api/ knows nothing of PTX; engine/ knows nothing of the driver API.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::softgpu {

struct ParameterInfo {
  u32 offset = 0;
  u32 size = 0;
};

struct KernelInfo {
  std::string name;
  std::vector<ParameterInfo> parameters;
  u32 parameter_bytes = 0;
  u32 static_shared_bytes = 0;
  u32 local_bytes = 0;     // per thread
  u32 registers = 0;       // an estimate, for cuFuncGetAttribute
  u32 max_threads = 1024;  // .maxntid, else 1024
  u32 ptx_version = 0;     // 80 for .version 8.0
  u32 target = 0;          // 70 for sm_70
};

struct GlobalInfo {
  std::string name;
  u64 size = 0;
  u64 alignment = 1;
  bool constant = false;
  std::vector<u8> initial;  // `size` bytes
};

// A loaded image. Its variables have no address until bind() gives them one; kernels can run after that.
class Program {
 public:
  virtual ~Program() = default;
  virtual std::span<const KernelInfo> kernels() const = 0;
  virtual std::span<const GlobalInfo> globals() const = 0;
  // Gives global `index` its device address. Initial values that hold addresses of other globals are patched
  // by finish_binding(), which writes every initial value to memory.
  virtual void bind(u64 index, u64 address) = 0;
  virtual void finish_binding() = 0;
};

struct Dim3 {
  u32 x = 1, y = 1, z = 1;
};

// Why a launch failed while running.
enum class Fault {
  none,
  illegal_address,
  misaligned_address,
  illegal_instruction,
  assertion,
  trap,
  out_of_shared
};

struct LaunchResult {
  Fault fault = Fault::none;
  std::string detail;  // kernel, instruction, thread: for the log
};

// Answers whether the device may touch [address, +bytes): global memory accesses are checked with it, so that
// an illegal access is a fault of the launch, not a crash. Must be fast: it is asked for every access that
// leaves the range last asked about; it returns the whole valid range around `address` in begin/end, or
// false.
class MemoryMap {
 public:
  virtual ~MemoryMap() = default;
  virtual bool range_of(u64 address, u64& begin, u64& end) = 0;
};

// Finds PTX in an image: PTX text, a fatbin (compressed with LZ4 or zstd, or not), a fatbin wrapper
// (__fatBinC_Wrapper_t), preferring the highest target at most `architecture` (90 for sm_90). False with
// `error` set when there is none ("image holds only machine code for sm_90a").
bool find_ptx(const void* image, u64 architecture, std::string& ptx, std::string& error);

// Parses and checks a whole PTX module. Null with `error` set ("line 12: instruction wgmma.mma_async is not
// supported by the software GPU"): an unknown instruction fails here, never at run time with a wrong result.
std::shared_ptr<Program> load_program(std::string_view ptx, std::string& error);

// Runs one grid to its end on up to `threads` CPU threads. `parameters` is the packed parameter buffer.
// `kernel` indexes program.kernels(). printf output (vprintf) goes to `standard_output` (a file descriptor).
LaunchResult run_kernel(const Program& program, u64 kernel, Dim3 grid, Dim3 block, u32 dynamic_shared_bytes,
                        std::span<const u8> parameters, MemoryMap& memory, u32 threads, int standard_output);

}  // namespace gpupool::softgpu
