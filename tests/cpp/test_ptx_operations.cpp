// Every form of every arithmetic instruction, on 128 inputs each, against what an H100 computed: see
// tests/kernels/operations.py for the instructions and measure_operations.py for the measurement.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "tests/cpp/ptx_machine.hpp"

namespace gpupool::softgpu::test {
namespace {

constexpr u32 kValues = 128;
constexpr std::array<std::string_view, 18> kKinds{"u8",     "s8",  "b16", "u16", "s16", "f16",
                                                  "bf16",   "b32", "u32", "s32", "f32", "f16x2",
                                                  "bf16x2", "sh",  "b64", "u64", "s64", "f64"};

struct Operation {
  int ulp = 0;
  std::vector<std::string> types;
  std::string text;
};

u32 bits_of(std::string_view kind) {
  if (kind == "sh") return 32;
  if (kind.ends_with("x2")) return 32;
  return static_cast<u32>(std::atoi(std::string(kind.substr(kind.find_first_of("0123456789"))).c_str()));
}

std::vector<Operation> read_operations() {
  std::istringstream lines(kernel_file("operations.txt"));
  std::vector<Operation> operations;
  for (std::string line; std::getline(lines, line);) {
    Operation operation;
    std::istringstream words(line);
    std::string types;
    words >> operation.ulp >> types >> std::ws;
    std::getline(words, operation.text);
    std::istringstream list(types);
    for (std::string type; std::getline(list, type, ',');) operation.types.push_back(type);
    operations.push_back(operation);
  }
  return operations;
}

// As operations.py's kernel().
std::string kernel_text(const Operation& operation) {
  const std::string names = "dabc";
  std::string text =
      ".version 8.3\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 d, .param .u64 a, .param "
      ".u64 b, .param .u64 c)\n{\n"
      ".reg .pred %p, %q;\n.reg .b32 %t;\n.reg .b64 %w, %x;\n";
  for (size_t i = 0; i < operation.types.size(); ++i) {
    const std::string& type = operation.types[i];
    const bool real = type == "f32" || type == "f64";
    text += ".reg ." + (real ? type : "b" + std::to_string(std::max(bits_of(type), 16u))) + " %" + names[i] +
            ";\n";
  }
  text += "mov.u32 %t, %tid.x;\nmul.wide.u32 %w, %t, 8;\n";
  for (size_t i = 1; i < operation.types.size(); ++i) {
    const std::string& type = operation.types[i];
    const std::string load = bits_of(type) == 8 ? type : "b" + std::to_string(bits_of(type));
    text += std::string("ld.param.u64 %x, [") + names[i] + "];\nadd.s64 %x, %x, %w;\nld.global." + load +
            " %" + names[i] + ", [%x];\n";
  }
  text += operation.text + "\nld.param.u64 %x, [d];\nadd.s64 %x, %x, %w;\nst.global.b" +
          std::to_string(std::max(bits_of(operation.types[0]), 16u)) + " [%x], %d;\nret;\n}\n";
  return text;
}

template <typename T, typename U>
bool close_reals(U a, U b, int ulp) {
  const T x = std::bit_cast<T>(a);
  const T y = std::bit_cast<T>(b);
  if (std::isnan(x) || std::isnan(y)) return std::isnan(x) && std::isnan(y);
  if (a == b) return true;
  if (ulp == 0 || std::signbit(x) != std::signbit(y)) return ulp != 0 && x == 0 && y == 0;
  // Approximations may or may not flush subnormal results.
  if (std::abs(x) < std::numeric_limits<T>::min() * 2 && std::abs(y) < std::numeric_limits<T>::min() * 2)
    return true;
  return (a > b ? a - b : b - a) <= static_cast<U>(ulp);
}

bool close_small(u16 a, u16 b, int ulp, u16 infinity) {
  const bool a_nan = (a & 0x7fff) > infinity;
  const bool b_nan = (b & 0x7fff) > infinity;
  if (a_nan || b_nan) return a_nan && b_nan;
  const int difference = (a & 0x8000 ? -(a & 0x7fff) : a) - (b & 0x8000 ? -(b & 0x7fff) : b);
  return std::abs(difference) <= ulp && (ulp != 0 || a == b);
}

bool same(const std::string& type, u64 ours, u64 theirs, int ulp) {
  if (type == "f32") return close_reals<float, u32>(static_cast<u32>(ours), static_cast<u32>(theirs), ulp);
  if (type == "f64") return close_reals<double, u64>(ours, theirs, ulp);
  if (type == "f16" || type == "bf16")
    return close_small(static_cast<u16>(ours), static_cast<u16>(theirs), ulp,
                       type == "f16" ? 0x7c00 : 0x7f80);
  if (type == "f16x2" || type == "bf16x2") {
    const u16 infinity = type == "f16x2" ? 0x7c00 : 0x7f80;
    return close_small(static_cast<u16>(ours), static_cast<u16>(theirs), ulp, infinity) &&
           close_small(static_cast<u16>(ours >> 16), static_cast<u16>(theirs >> 16), ulp, infinity);
  }
  return ours == theirs;
}

}  // namespace

TEST_CASE("every operation computes what an H100 computed") {
  const std::vector<Operation> operations = read_operations();
  const std::string expected = kernel_file("operations.out");
  Device device;
  const std::string in = kernel_file("operations.in");
  u8* inputs = device.copy_of(std::vector<u8>(in.begin(), in.end()));
  u64* results = device.allocate<u64>(kValues);
  size_t at = 0;
  for (const Operation& operation : operations) {
    CAPTURE(operation.text);
    const u32 bytes = std::max(bits_of(operation.types[0]), 16u) / 8;
    std::array<u64, 3> pointers{};
    for (size_t i = 0; i < 3; ++i) {
      const std::string type = i + 1 < operation.types.size() ? operation.types[i + 1] : "u8";
      const size_t kind = static_cast<size_t>(std::find(kKinds.begin(), kKinds.end(), type) - kKinds.begin());
      REQUIRE(kind < kKinds.size());
      pointers[i] = reinterpret_cast<u64>(inputs) + (kind * 3 + i) * kValues * 8;
    }
    std::string error;
    const auto program = load_program(kernel_text(operation), error);
    REQUIRE_MESSAGE(program != nullptr, operation.text << ": " << error);
    program->finish_binding();
    std::fill(results, results + kValues, 0);
    const std::array<u64, 4> parameters{reinterpret_cast<u64>(results), pointers[0], pointers[1],
                                        pointers[2]};
    const std::span<const u8> buffer(reinterpret_cast<const u8*>(parameters.data()), sizeof parameters);
    const LaunchResult done = run_kernel(*program, 0, {}, {kValues, 1, 1}, 0, buffer, device, 1, -1);
    REQUIRE_MESSAGE(done.fault == Fault::none, done.detail);
    u32 wrong = 0;
    for (u32 i = 0; i < kValues; ++i, at += bytes) {
      u64 theirs = 0;
      REQUIRE(at + bytes <= expected.size());
      std::memcpy(&theirs, expected.data() + at, bytes);
      if (same(operation.types[0], results[i], theirs, operation.ulp) || ++wrong > 3) continue;
      CAPTURE(i);
      char text[160];
      std::snprintf(text, sizeof text, "a %llx b %llx c %llx: ours %llx, theirs %llx",
                    reinterpret_cast<unsigned long long*>(pointers[0])[i],
                    reinterpret_cast<unsigned long long*>(pointers[1])[i],
                    reinterpret_cast<unsigned long long*>(pointers[2])[i],
                    static_cast<unsigned long long>(results[i]), static_cast<unsigned long long>(theirs));
      FAIL_CHECK(operation.text << " " << text);
    }
    CHECK(wrong == 0);
  }
  CHECK(at == expected.size());
}

}  // namespace gpupool::softgpu::test
