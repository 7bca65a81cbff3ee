// The engine runs tests/kernels/basic.cu as nvcc compiles it; every result is compared with the same
// computation here.
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "tests/cpp/ptx_machine.hpp"

namespace gpupool::softgpu::test {
namespace {

struct Fixture {
  Device device;
  Module module{device, kernel_file("basic.ptx")};
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "vector addition") {
  const int n = 10007;
  const auto a = random_reals<float>(n, -100, 100);
  const auto b = random_reals<float>(n, -100, 100);
  float* c = device.allocate<float>(n);
  module.launch("vector_add", {40, 1, 1}, {256, 1, 1}, 0, device.copy_of(a), device.copy_of(b), c, n);
  for (int i = 0; i < n; ++i) REQUIRE(c[i] == a[i] + b[i]);
}

TEST_CASE_FIXTURE(Fixture, "saxpy with a grid-stride loop") {
  const u64 n = 5001;
  const auto x = random_reals<float>(n, -1, 1);
  const auto y = random_reals<float>(n, -1, 1);
  float* out = device.copy_of(y);
  module.launch("saxpy", {3, 1, 1}, {100, 1, 1}, 0, 2.5f, device.copy_of(x), out, n);
  for (u64 i = 0; i < n; ++i) REQUIRE(out[i] == std::fma(2.5f, x[i], y[i]));
}

TEST_CASE_FIXTURE(Fixture, "reductions") {
  const int n = 20000;
  const auto in = random_integers<int>(n, -1000, 1000);
  std::vector<float> reals(in.begin(), in.end());
  float* sums = device.allocate<float>(8);
  module.launch("reduce_shared", {8, 1, 1}, {256, 1, 1}, 0, device.copy_of(reals), sums, n);
  const long long expected = std::accumulate(in.begin(), in.end(), 0ll);
  CHECK(std::accumulate(sums, sums + 8, 0.0) == static_cast<double>(expected));
  int* sum = device.allocate<int>(1);
  module.launch("reduce_warp", {(n + 95) / 96, 1, 1}, {96, 1, 1}, 0, device.copy_of(in), sum, n);
  CHECK(*sum == expected);
}

TEST_CASE_FIXTURE(Fixture, "shuffles in every mode") {
  const auto in = random_integers<int>(32, -100000, 100000);
  int* out = device.allocate<int>(256);
  module.launch("shuffles", {1, 1, 1}, {32, 1, 1}, 0, device.copy_of(in), out);
  for (int lane = 0; lane < 32; ++lane) {
    CHECK(out[lane] == in[(lane * 7 + 3) & 31]);
    CHECK(out[32 + lane] == in[lane >= 3 ? lane - 3 : lane]);
    CHECK(out[64 + lane] == in[lane + 5 < 32 ? lane + 5 : lane]);
    CHECK(out[96 + lane] == in[lane ^ 9]);
    CHECK(out[128 + lane] == in[lane % 8 >= 2 ? lane - 2 : lane]);
    CHECK(out[160 + lane] == in[lane % 4 + 1 < 4 ? lane + 1 : lane]);
    CHECK(out[192 + lane] == in[lane / 8 * 8 + 5]);
    CHECK(out[224 + lane] == in[lane < 16 ? lane ^ 1 : lane ^ 2]);
  }
}

TEST_CASE_FIXTURE(Fixture, "votes and matches") {
  auto in = random_integers<int>(32, 0, 255);
  in[7] = 77;
  u32* out = device.allocate<u32>(256);
  module.launch("votes", {1, 1, 1}, {32, 1, 1}, 0, device.copy_of(in), out);
  u32 ballot = 0, odd = 0;
  for (u32 lane = 0; lane < 32; ++lane) {
    ballot |= static_cast<u32>(in[lane] > 10) << lane;
    odd |= static_cast<u32>(in[lane] & 1) << lane;
  }
  const u32 count = static_cast<u32>(std::popcount(odd));
  for (u32 lane = 0; lane < 32; ++lane) {
    u32 same = 0;
    for (u32 other = 0; other < 32; ++other)
      same |= static_cast<u32>((in[other] & 3) == (in[lane] & 3)) << other;
    CHECK(out[lane] == ballot);
    CHECK(out[32 + lane] == 1);
    CHECK(out[64 + lane] == 1);
    CHECK(out[96 + lane] == same);
    CHECK(out[128 + lane] == ~0u);
    CHECK(out[160 + lane] == 1);
    CHECK(out[192 + lane] == odd);
    CHECK(out[224 + lane] == (count | (count == 32 ? 1u : 0u) << 16 | (count != 0 ? 1u : 0u) << 17));
  }
}

TEST_CASE_FIXTURE(Fixture, "atomics") {
  const int n = 3000;
  const auto in = random_integers<u32>(n, 0, 0x7fffffff);
  u32* u = device.allocate<u32>(12);
  u[2] = ~0u, u[4] = ~0u;
  int* s = device.allocate<int>(2);
  s[0] = 0x7fffffff;
  u64* w = device.allocate<u64>(3);
  float* f = device.allocate<float>(2);
  double* d = device.allocate<double>(1);
  module.launch("atomics", {13, 1, 1}, {250, 1, 1}, 0, device.copy_of(in), u, s, w, f, d, n);
  u32 sum = 0, all_and = ~0u, all_or = 0, all_xor = 0, odd = 0, local = 0;
  u64 wide = 0;
  double f15 = 0, d255 = 0, f3 = 0;
  for (const u32 v : in) {
    sum += v, all_and &= v | 0xff, all_or |= v, all_xor ^= v, odd += v & 1, local += v & 7;
    wide += static_cast<u64>(v) << 20;
    f15 += v & 15, d255 += v & 255, f3 += v & 3;
  }
  const auto [low, high] = std::minmax_element(in.begin(), in.end());
  CHECK(u[0] == sum);
  CHECK(u[1] == 0 - sum);
  CHECK(u[2] == *low);
  CHECK(u[3] == *high);
  CHECK(u[4] == all_and);
  CHECK(u[5] == all_or);
  CHECK(u[6] == all_xor);
  CHECK(u[7] == n % 1001);
  CHECK(u[8] == (1001 - n % 1001) % 1001);
  CHECK(u[9] == odd);
  CHECK(u[10] == local);
  CHECK(u[11] == 4711);
  CHECK(s[0] == static_cast<int>(*low));
  CHECK(s[1] == static_cast<int>(*high));
  CHECK(w[0] == wide);
  CHECK(w[1] == static_cast<u64>(*high) << 20);
  CHECK(static_cast<i64>(w[2]) == -static_cast<i64>(*high));
  CHECK(f[0] == static_cast<float>(f15));
  CHECK(f[1] == static_cast<float>(f3));
  CHECK(d[0] == d255);
}

TEST_CASE_FIXTURE(Fixture, "lanes that spin on a lock let its owner go on") {
  for (const char* kernel : {"spin_lock", "spin_lock_tight"}) {
    int* lock = device.allocate<int>(1);
    int* counter = device.allocate<int>(1);
    module.launch(kernel, {6, 1, 1}, {64, 1, 1}, 0, lock, counter);
    CHECK(*counter == 384);
    CHECK(*lock == 0);
  }
}

TEST_CASE_FIXTURE(Fixture, "matrix product in tiles") {
  const int n = 75;
  const auto a = random_reals<float>(n * n, -1, 1);
  const auto b = random_reals<float>(n * n, -1, 1);
  float* c = device.allocate<float>(n * n);
  module.launch("matmul", {5, 5, 1}, {16, 16, 1}, 0, device.copy_of(a), device.copy_of(b), c, n);
  for (int row = 0; row < n; ++row)
    for (int column = 0; column < n; ++column) {
      float sum = 0;  // in the kernel's order, with its padding of zeros, which change nothing
      for (int k = 0; k < n; ++k) sum = std::fma(a[row * n + k], b[k * n + column], sum);
      REQUIRE(c[row * n + column] == sum);
    }
}

TEST_CASE_FIXTURE(Fixture, "stencil in dynamic shared memory") {
  const int n = 1000;
  const auto in = random_reals<double>(n, -1, 1);
  double* out = device.allocate<double>(n);
  module.launch("stencil", {8, 1, 1}, {128, 1, 1}, 132 * 8, device.copy_of(in), out, n);
  const auto at = [&](int i) { return i >= 0 && i < n ? in[i] : 0.0; };
  for (int i = 0; i < n; ++i)
    REQUIRE(
        out[i] ==
        doctest::Approx(at(i - 2) + 2 * at(i - 1) + 3 * at(i) + 2 * at(i + 1) + at(i + 2)).epsilon(1e-12));
}

TEST_CASE_FIXTURE(Fixture, "histogram, scan, transpose") {
  const int n = 9999;
  const auto bytes = random_integers<u8>(n, 0, 255);
  u32* bins = device.allocate<u32>(256);
  module.launch("histogram", {4, 1, 1}, {128, 1, 1}, 0, device.copy_of(bytes), bins, n);
  for (int bin = 0; bin < 256; ++bin)
    REQUIRE(bins[bin] == static_cast<u32>(std::count(bytes.begin(), bytes.end(), static_cast<u8>(bin))));

  const auto in = random_integers<int>(500, -50, 50);
  int* sums = device.allocate<int>(500);
  module.launch("scan", {1, 1, 1}, {512, 1, 1}, 0, device.copy_of(in), sums, 500);
  int sum = 0;
  for (int i = 0; i < 500; ++i) REQUIRE(sums[i] == (sum += in[i]));

  const int width = 100, height = 70;
  const auto matrix = random_integers<int>(width * height, 0, 1 << 30);
  int* turned = device.allocate<int>(width * height);
  module.launch("transpose", {4, 3, 1}, {32, 8, 1}, 0, device.copy_of(matrix), turned, width, height);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) REQUIRE(turned[x * height + y] == matrix[y * width + x]);
}

TEST_CASE_FIXTURE(Fixture, "vector loads and stores") {
  const int n = 333;
  const auto in = random_reals<float>(4 * n, -1, 1);
  const auto narrow = random_integers<std::int16_t>(2 * n, -32768, 32767);
  float* out = device.allocate<float>(4 * n);
  int* wide = device.allocate<int>(2 * n);
  module.launch("vectors", {3, 1, 1}, {128, 1, 1}, 0, device.copy_of(in), out, device.copy_of(narrow), wide,
                n);
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < 4; ++k) REQUIRE(out[4 * i + k] == in[4 * i + 3 - k]);
    REQUIRE(wide[2 * i] == narrow[2 * i] * 3);
    REQUIRE(wide[2 * i + 1] == narrow[2 * i + 1] - 5);
  }
}

TEST_CASE_FIXTURE(Fixture, "special registers over a three-dimensional grid") {
  u32* out = device.allocate<u32>(2 * 3 * 4 * 60 * 4);
  module.launch("where", {2, 3, 4}, {5, 4, 3}, 0, out);
  for (u32 block = 0; block < 24; ++block)
    for (u32 thread = 0; thread < 60; ++thread) {
      const u32* at = out + 4 * (block * 60 + thread);
      REQUIRE(at[0] == block);
      REQUIRE(at[1] == thread);
      REQUIRE(at[2] == (thread % 32 | thread / 32 << 8));
      REQUIRE(at[3] == (1u << thread % 32) - 1);
    }
}

TEST_CASE_FIXTURE(Fixture, "loops and branches that differ by lane") {
  const int n = 1000;
  const auto in = random_integers<u32>(n, 1, 100000);
  u32* out = device.allocate<u32>(n);
  module.launch("collatz", {8, 1, 1}, {128, 1, 1}, 0, device.copy_of(in), out, n);
  for (int i = 0; i < n; ++i) {
    u32 steps = 0;
    for (u64 v = in[i]; v != 1 && ++steps <= 400;) v = v & 1 ? 3 * v + 1 : v >> 1;
    REQUIRE(out[i] == steps);
  }
  const auto values = random_integers<int>(n, -1000000, 1000000);
  int* chosen = device.allocate<int>(n);
  module.launch("choose", {8, 1, 1}, {128, 1, 1}, 0, device.copy_of(values), chosen, n);
  for (int i = 0; i < n; ++i) {
    const int v = values[i];
    const int results[16] = {
        v * 3,  v ^ 0x55,   v / 7,      v % 9,    -v,       static_cast<int>(static_cast<u32>(v) << 3),
        v >> 2, v & 0xf0f0, v | 0x0f0f, v + 1000, v - 1000, ~v,
        ~v,     ~v,         ~v,         ~v};
    REQUIRE(chosen[i] == results[v & 15]);
  }
}

TEST_CASE_FIXTURE(Fixture, "variables with initial values and addresses") {
  u64* out = device.allocate<u64>(8);
  module.launch("globals", {1, 1, 1}, {8, 1, 1}, 0, out);
  const u64 state[4] = {1, 2, 3, 4};
  const int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
  for (u32 t = 0; t < 8; ++t)
    CHECK(out[t] == state[t & 3] * 100 + static_cast<u64>(table[t]) + (t == 5 ? 3000 : 0));
  CHECK(static_cast<u64*>(module.global("generator_state"))[3] == 14);
}

TEST_CASE_FIXTURE(Fixture, "arrays in local memory") {
  const int n = 256;
  const auto in = random_integers<int>(n, -1000, 1000);
  int* out = device.allocate<int>(n * 32);
  module.launch("transposed_local", {2, 1, 1}, {128, 1, 1}, 0, device.copy_of(in), out, n);
  for (int i = 0; i < n; ++i) {
    std::vector<int> values;
    for (int k = 0; k < 32; ++k) values.push_back(in[(i + k) % n]);
    std::sort(values.begin(), values.end());
    for (int k = 0; k < 32; ++k) REQUIRE(out[i * 32 + k] == values[k]);
  }
}

TEST_CASE_FIXTURE(Fixture, "calls, recursion, structures by value") {
  struct Pair {
    i64 a;
    float b;
    char c;
  };
  std::vector<Pair> pairs(64);
  for (int t = 0; t < 64; ++t) pairs[t] = {t * 10000000000ll, t * 0.25f, static_cast<char>(t)};
  Pair* device_pairs = device.copy_of(pairs);
  int* out = device.allocate<int>(64);
  module.launch("calls", {1, 1, 1}, {64, 1, 1}, 0, out, device_pairs);
  const int fibonacci[12] = {0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
  for (int t = 0; t < 64; ++t) {
    CHECK(out[t] == fibonacci[t % 12]);
    const bool made = t % 3 != 0;
    CHECK(device_pairs[t].a == pairs[t].a + (made ? t : 0));
    CHECK(device_pairs[t].b ==
          (made ? static_cast<float>(t * 0.5 * static_cast<double>(pairs[t].b)) : pairs[t].b));
    CHECK(device_pairs[t].c == pairs[t].c + (made ? 1 : 0));
  }
}

TEST_CASE_FIXTURE(Fixture, "indirect calls") {
  const auto which = random_integers<int>(64, 0, 2);
  int* out = device.allocate<int>(64);
  module.launch("indirect", {1, 1, 1}, {64, 1, 1}, 0, device.copy_of(which), out);
  for (int t = 0; t < 64; ++t) CHECK(out[t] == (which[t] == 0 ? t + 7 : which[t] == 1 ? t - 7 : t * 7));
}

TEST_CASE_FIXTURE(Fixture, "large parameters") {
  struct Big {
    int values[1000];
  } big;
  for (int i = 0; i < 1000; ++i) big.values[i] = i * i;
  int* out = device.allocate<int>(500);
  module.launch("big_parameter", {4, 1, 1}, {128, 1, 1}, 0, big, out, 500);
  for (int i = 0; i < 500; ++i) REQUIRE(out[i] == big.values[(i * 7) % 1000]);
}

}  // namespace gpupool::softgpu::test
