// A device for the engine's tests: memory, launches, random input.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "hostd/softgpu/engine/engine.hpp"

namespace gpupool::softgpu::test {

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

// A file of tests/kernels, or of the folder that GPUPOOL_TEST_KERNELS names: the output of other compilers.
inline std::string kernel_file(const std::string& name) {
  const char* folder = std::getenv("GPUPOOL_TEST_KERNELS");
  const std::string kernels = folder != nullptr ? folder : GPUPOOL_SOURCE_DIR "/tests/kernels";
  return read_file(kernels + "/" + name);
}

class Device final : public MemoryMap {
 public:
  // Each allocation stands alone, so that a step beyond it is noticed.
  template <typename T>
  T* allocate(size_t count) {
    auto block = std::make_unique<u8[]>(count * sizeof(T) + 256);
    u8* at = reinterpret_cast<u8*>((reinterpret_cast<u64>(block.get()) + 255) / 256 * 256);
    std::memset(at, 0, count * sizeof(T));
    ranges_[reinterpret_cast<u64>(at)] = count * sizeof(T);
    blocks_.push_back(std::move(block));
    return reinterpret_cast<T*>(at);
  }
  template <typename T>
  T* copy_of(const std::vector<T>& values) {
    T* at = allocate<T>(values.size());
    std::memcpy(at, values.data(), values.size() * sizeof(T));
    return at;
  }
  bool range_of(u64 address, u64& begin, u64& end) override {
    const std::lock_guard lock(mutex_);
    auto found = ranges_.upper_bound(address);
    if (found == ranges_.begin()) return false;
    --found;
    begin = found->first;
    end = begin + found->second;
    return address < end;
  }

 private:
  std::mutex mutex_;
  std::map<u64, u64> ranges_;
  std::vector<std::unique_ptr<u8[]>> blocks_;
};

class Module {
 public:
  Module(Device& device, const std::string& ptx) : device_(device) {
    std::string error;
    program_ = load_program(ptx, error);
    REQUIRE_MESSAGE(program_ != nullptr, error);
    const auto globals = program_->globals();
    for (size_t i = 0; i < globals.size(); ++i) {
      u8* at = device.allocate<u8>(globals[i].size);
      addresses_[globals[i].name] = at;
      program_->bind(i, reinterpret_cast<u64>(at));
    }
    program_->finish_binding();
  }

  const KernelInfo& info(const std::string& name) const { return program_->kernels()[index_of(name)]; }
  void* global(const std::string& name) const { return addresses_.at(name); }
  Program& program() { return *program_; }

  // Packs the arguments as cuLaunchKernel would from the kernel's layout.
  template <typename... Arguments>
  LaunchResult try_launch(const std::string& name, Dim3 grid, Dim3 block, u32 shared,
                          Arguments... arguments) {
    const KernelInfo& kernel = info(name);
    REQUIRE(kernel.parameters.size() == sizeof...(arguments));
    std::vector<u8> buffer(kernel.parameter_bytes);
    size_t next = 0;
    (
        [&] {
          REQUIRE(kernel.parameters[next].size == sizeof(arguments));
          std::memcpy(buffer.data() + kernel.parameters[next++].offset, &arguments, sizeof(arguments));
        }(),
        ...);
    return run_kernel(*program_, index_of(name), grid, block, shared, buffer, device_, threads, output);
  }
  template <typename... Arguments>
  void launch(const std::string& name, Dim3 grid, Dim3 block, u32 shared, Arguments... arguments) {
    const LaunchResult result = try_launch(name, grid, block, shared, arguments...);
    REQUIRE_MESSAGE(result.fault == Fault::none, result.detail);
  }

  u32 threads = 4;
  int output = -1;

 private:
  u64 index_of(const std::string& name) const {
    const auto kernels = program_->kernels();
    for (size_t i = 0; i < kernels.size(); ++i)
      if (kernels[i].name == name) return i;
    FAIL("no kernel " << name);
    return 0;
  }

  Device& device_;
  std::shared_ptr<Program> program_;
  std::map<std::string, u8*> addresses_;
};

inline std::mt19937_64& generator() {
  static std::mt19937_64 g(20261123);
  return g;
}

template <typename T>
std::vector<T> random_integers(size_t count, i64 low, i64 high) {
  std::uniform_int_distribution<i64> distribution(low, high);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(distribution(generator()));
  return values;
}

template <typename T>
std::vector<T> random_reals(size_t count, T low, T high) {
  std::uniform_real_distribution<T> distribution(low, high);
  std::vector<T> values(count);
  for (T& value : values) value = distribution(generator());
  return values;
}

}  // namespace gpupool::softgpu::test
