// printf, assertions, faults, barriers, asynchronous copies, cooperative groups: tests/kernels/system.cu.
#include <unistd.h>

#include <cmath>
#include <numeric>

#include "tests/cpp/ptx_machine.hpp"

namespace gpupool::softgpu::test {
namespace {

struct Fixture {
  Device device;
  Module module{device, kernel_file("system.ptx")};
};

// Collects what a launch prints. A pipe holds 64 KiB, more than these tests write.
class Output {
 public:
  Output() { REQUIRE(pipe(ends_) == 0); }
  ~Output() { close(ends_[0]); }
  int descriptor() const { return ends_[1]; }
  std::string text() {
    close(ends_[1]);
    std::string result;
    char buffer[4096];
    for (ssize_t got = 0; (got = read(ends_[0], buffer, sizeof buffer)) > 0;)
      result.append(buffer, static_cast<size_t>(got));
    return result;
  }

 private:
  int ends_[2]{};
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "printf") {
  Output output;
  module.output = output.descriptor();
  module.launch("hello", {1, 1, 1}, {4, 1, 1}, 0, 3);
  CHECK(output.text() ==
        "thread 0 of 4: even  0.00 [ab    ] a 0 ff (nil) %\n"
        "thread 1 of 4: odd  1.50 [ab    ] b -1234567890123 ff (nil) %\n"
        "thread 2 of 4: even  3.00 [ab    ] c -2469135780246 ff (nil) %\n");
}

TEST_CASE_FIXTURE(Fixture, "a failed assertion ends the launch and says where") {
  std::vector<int> values(100, 1);
  module.launch("check", {4, 1, 1}, {32, 1, 1}, 0, device.copy_of(values), 100);
  values[70] = -1;
  const LaunchResult result =
      module.try_launch("check", {4, 1, 1}, {32, 1, 1}, 0, device.copy_of(values), 100);
  CHECK(result.fault == Fault::assertion);
  CHECK(result.detail.find("assertion `in[i] >= 0` failed") != std::string::npos);
  CHECK(result.detail.find("block (2,0,0), thread (6,0,0)") != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "faults end the launch and name the instruction") {
  int* out = device.allocate<int>(32);
  LaunchResult result = module.try_launch("traps", {1, 1, 1}, {32, 1, 1}, 0, out);
  CHECK(result.fault == Fault::trap);
  CHECK(result.detail.find("thread (7,0,0)") != std::string::npos);
  CHECK(result.detail.find("trap;") != std::string::npos);
  CHECK(out[31] == 1);

  module.launch("out_of_bounds", {1, 1, 1}, {32, 1, 1}, 0, out, 0);
  result = module.try_launch("out_of_bounds", {1, 1, 1}, {32, 1, 1}, 0, out, 1);
  CHECK(result.fault == Fault::illegal_address);
  CHECK(result.detail.find("thread (31,0,0)") != std::string::npos);
  CHECK(result.detail.find("st.global.u32") != std::string::npos);
  result = module.try_launch("out_of_bounds", {1, 1, 1}, {32, 1, 1}, 0, static_cast<int*>(nullptr), 0);
  CHECK(result.fault == Fault::illegal_address);
  result = module.try_launch("misaligned", {1, 1, 1}, {4, 1, 1}, 0, out);
  CHECK(result.fault == Fault::misaligned_address);

  module.launch("beyond_shared", {1, 1, 1}, {32, 1, 1}, 400, out, 99);
  result = module.try_launch("beyond_shared", {1, 1, 1}, {32, 1, 1}, 400, out, 100);
  CHECK(result.fault == Fault::illegal_address);
  result = module.try_launch("beyond_shared", {1, 1, 1}, {32, 1, 1}, 300 * 1024, out, 0);
  CHECK(result.fault == Fault::out_of_shared);
  module.launch("beyond_shared", {1, 1, 1}, {32, 1, 1}, 227 * 1024, out, 227 * 256 - 1);
}

TEST_CASE_FIXTURE(Fixture, "a barrier that cannot open is a fault, not a hang") {
  int* out = device.allocate<int>(64);
  const LaunchResult result = module.try_launch("unfinished_barrier", {1, 1, 1}, {64, 1, 1}, 0, out);
  CHECK(result.fault == Fault::trap);
  CHECK(result.detail.find("deadlock") != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "named barriers between producer and consumer") {
  const auto in = random_integers<int>(32 * 20, -100, 100);
  int* out = device.allocate<int>(32 * 20);
  module.launch("named_barriers", {3, 1, 1}, {64, 1, 1}, 0, device.copy_of(in), out, 20);
  for (size_t i = 0; i < in.size(); ++i) REQUIRE(out[i] == in[i] * 2 + 1);
}

TEST_CASE_FIXTURE(Fixture, "threads that have exited are not waited for") {
  int* out = device.allocate<int>(100);
  module.launch("early_exit", {1, 1, 1}, {100, 1, 1}, 0, out);
  for (int t = 0; t < 100; ++t) CHECK(out[t] == (t % 3 == 1 ? 0 : 67));
}

TEST_CASE_FIXTURE(Fixture, "asynchronous copies into shared memory") {
  const int n = 1000;
  const auto in = random_reals<float>(4 * n, -1, 1);
  float* out = device.allocate<float>(4 * n);
  module.launch("async_copy", {8, 1, 1}, {128, 1, 1}, 128 * 16, device.copy_of(in), out, n);
  for (int i = 0; i < n; ++i) {
    const int other = i / 128 * 128 + 127 - i % 128;
    for (int k = 0; k < 4; ++k) REQUIRE(out[4 * i + k] == (other < n ? in[4 * other + k] : 0));
  }
}

TEST_CASE_FIXTURE(Fixture, "cooperative groups") {
  const auto in = random_integers<int>(64, 0, 100);
  int* out = device.allocate<int>(128);
  module.launch("groups", {1, 1, 1}, {64, 1, 1}, 0, device.copy_of(in), out);
  for (int t = 0; t < 64; ++t) {
    CHECK(out[t] == std::accumulate(in.begin() + t / 8 * 8, in.begin() + t / 8 * 8 + 8, 0));
    int count = 0, first = -1;
    for (int i = t / 32 * 32; i < t / 32 * 32 + 32; ++i)
      if (in[i] & 1) {
        if (first < 0) first = in[i];
        ++count;
      }
    CHECK(out[64 + t] == (in[t] & 1 ? first + count * 1000 : -1));
  }
}

TEST_CASE_FIXTURE(Fixture, "blocks that wait for each other all make progress") {
  u32* arrived = device.allocate<u32>(1);
  int* data = device.allocate<int>(20 * 64);
  int* out = device.allocate<int>(20 * 64);
  module.threads = 2;
  module.launch("grid_barrier", {20, 1, 1}, {64, 1, 1}, 0, arrived, data, out);
  for (int i = 0; i < 20 * 64; ++i) REQUIRE(out[i] == 210);
}

TEST_CASE_FIXTURE(Fixture, "lanes of different ways meet at shuffles") {
  const auto in = random_integers<int>(96, 0, 1000);
  int* out = device.allocate<int>(96);
  module.launch("separate_ways", {1, 1, 1}, {96, 1, 1}, 0, device.copy_of(in), out);
  for (int t = 0; t < 96; ++t) {
    const int v = in[t];
    int r = 0;
    if (v & 1)
      for (int i = 0; i < (v & 15); ++i) r += i * v;
    else
      r = v * 3;
    r += in[t ^ 1];
    r = t & 2 ? r ^ 5 : r + 9;
    CHECK(out[t] == r);
  }
  const auto numbers = random_integers<int>(1024, -100, 100);
  int* sum = device.allocate<int>(1);
  module.launch("block_reduce", {1, 1, 1}, {1024, 1, 1}, 0, device.copy_of(numbers), sum);
  CHECK(*sum == std::accumulate(numbers.begin(), numbers.end(), 0));
}

TEST_CASE_FIXTURE(Fixture, "libraries of mathematical functions") {
  const int n = 200;
  auto in = random_reals<float>(n, -10, 10);
  in[0] = 1.0f, in[1] = 1e-3f, in[2] = -2.5f;
  const auto wide = random_reals<double>(n, -10, 10);
  float* out = device.allocate<float>(16 * n);
  double* wide_out = device.allocate<double>(6 * n);
  module.launch("mathematics", {2, 1, 1}, {128, 1, 1}, 0, device.copy_of(in), out, device.copy_of(wide),
                wide_out, n);
  for (int i = 0; i < n; ++i) {
    const double v = in[i];
    const double expected[16] = {std::sin(v),
                                 std::cos(v),
                                 std::exp(v),
                                 std::log(std::abs(v) + 1),
                                 std::pow(std::abs(v), static_cast<double>(1.7f)),
                                 std::tanh(v),
                                 std::sqrt(std::abs(v)),
                                 1 / v,
                                 std::exp(v),
                                 std::sin(v),
                                 1 / std::sqrt(std::abs(v)),
                                 std::atan2(v, 2.0),
                                 std::fmod(v, 3.0),
                                 std::erf(v),
                                 std::round(v) + std::trunc(v) * 100 + std::nearbyint(v) * 10000,
                                 std::sin(static_cast<double>(in[i] * 1e7f))};
    for (int k = 0; k < 16; ++k) {
      CAPTURE(k);
      CAPTURE(v);
      REQUIRE(out[16 * i + k] == doctest::Approx(expected[k]).epsilon(2e-6));
    }
    const double w = wide[i];
    const double wide_expected[6] = {std::sin(w),
                                     std::exp(w),
                                     std::log(std::abs(w) + 1),
                                     std::pow(std::abs(w), 0.3),
                                     std::sqrt(std::abs(w)) / w,
                                     std::fma(w, w, 1 / w)};
    for (int k = 0; k < 6; ++k) {
      CAPTURE(k);
      REQUIRE(wide_out[6 * i + k] == doctest::Approx(wide_expected[k]).epsilon(1e-14));
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "128-bit and 64-bit integers") {
  const int n = 300;
  const auto a = random_integers<i64>(n, INT64_MIN, INT64_MAX);
  const auto b = random_integers<i64>(n, -1000000000000, 1000000000000);
  i64* out = device.allocate<i64>(4 * n);
  module.launch("wide_integers", {3, 1, 1}, {128, 1, 1}, 0, device.copy_of(a), device.copy_of(b), out, n);
  for (int i = 0; i < n; ++i) {
    const __int128 p = static_cast<__int128>(a[i]) * b[i] + a[i];
    const i64 odd = b[i] | 1;
    const auto q = static_cast<unsigned __int128>(p) / static_cast<u64>(odd);
    REQUIRE(out[4 * i] == static_cast<i64>(p >> 64));
    REQUIRE(out[4 * i + 1] == static_cast<i64>(p));
    REQUIRE(out[4 * i + 2] == static_cast<i64>(q));
    const u64 high = static_cast<u64>((static_cast<__int128>(a[i]) * b[i]) >> 64);
    REQUIRE(static_cast<u64>(out[4 * i + 3]) ==
            static_cast<u64>(a[i] / odd) + static_cast<u64>(a[i] % odd) + high);
  }
}

TEST_CASE_FIXTURE(Fixture, "address spaces, clocks, virtual functions, templates") {
  int* out = device.allocate<int>(8);
  module.launch("spaces", {1, 1, 1}, {1, 1, 1}, 0, out, static_cast<int*>(nullptr));
  CHECK(out[1] == 1);
  CHECK(out[2] == 2);
  CHECK(out[3] == 4);
  CHECK(out[0] == 102);
  CHECK(out[4] == 100);
  CHECK(out[5] == 101);
  i64* times = device.allocate<i64>(2);
  module.launch("clocks", {1, 1, 1}, {1, 1, 1}, 0, times);
  CHECK(times[0] > 0);
  CHECK(times[1] > 1'700'000'000'000'000'000);
  float* areas = device.allocate<float>(32);
  module.launch("virtual_calls", {1, 1, 1}, {32, 1, 1}, 0, areas);
  for (int t = 0; t < 32; ++t) CHECK(areas[t] == static_cast<float>(t * t * (t >> 1 & 1 ? 3 : 1)));
  double* products = device.allocate<double>(32);
  module.launch("_Z9templatedIdEvPT_S0_", {1, 1, 1}, {32, 1, 1}, 0, products, 2.5);
  for (int t = 0; t < 32; ++t) CHECK(products[t] == 2.5 * t);
}

}  // namespace gpupool::softgpu::test
