// The demo's program: an ordinary CUDA driver-API program that knows nothing of gpupool. Usage: host
// KERNELS.ptx Prints one line of JSON; exits 1 when a result is wrong and 2 when a CUDA call fails.
#include <cuda.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace {

void check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  cuGetErrorName(result, &name);
  std::fprintf(stderr, "%s: %s\n", what, name == nullptr ? "unknown error" : name);
  std::exit(2);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr int kSide = 128;
constexpr int kSteps = 100;
constexpr float kRate = 0.2f;

std::vector<float> make_plate() {
  std::vector<float> plate(kSide * kSide, 0.0f);
  for (int y = kSide / 4; y < kSide / 2; ++y)
    for (int x = kSide / 4; x < kSide / 2; ++x) plate[y * kSide + x] = 100.0f;
  return plate;
}

// The same arithmetic on the CPU.
std::vector<float> reference(std::vector<float> now) {
  std::vector<float> next = now;
  for (int step = 0; step < kSteps; ++step) {
    for (int y = 1; y < kSide - 1; ++y)
      for (int x = 1; x < kSide - 1; ++x) {
        const int at = y * kSide + x;
        const float around = now[at - 1] + now[at + 1] + now[at - kSide] + now[at + kSide];
        next[at] = now[at] + kRate * (around - 4.0f * now[at]);
      }
    std::swap(now, next);
  }
  return now;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s KERNELS.ptx\n", argv[0]);
    return 64;
  }
  std::ifstream file(argv[1]);
  const std::string ptx{std::istreambuf_iterator<char>(file), {}};
  const auto start = std::chrono::steady_clock::now();
  check(cuInit(0), "cuInit");
  CUdevice device = 0;
  CUcontext context = nullptr;
  char name[256] = {};
  check(cuDeviceGet(&device, 0), "cuDeviceGet");
  check(cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
  check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
  CUmodule module = nullptr;
  CUfunction step = nullptr, total = nullptr;
  check(cuModuleLoadData(&module, ptx.c_str()), "cuModuleLoadData");
  check(cuModuleGetFunction(&step, module, "step"), "cuModuleGetFunction step");
  check(cuModuleGetFunction(&total, module, "total"), "cuModuleGetFunction total");
  const double setup = seconds_since(start);

  const std::vector<float> plate = make_plate();
  const size_t bytes = plate.size() * sizeof(float);
  CUdeviceptr now = 0, next = 0, sum = 0;
  check(cuMemAlloc(&now, bytes), "cuMemAlloc");
  check(cuMemAlloc(&next, bytes), "cuMemAlloc");
  check(cuMemAlloc(&sum, sizeof(float)), "cuMemAlloc");
  const auto compute = std::chrono::steady_clock::now();
  check(cuMemcpyHtoD(now, plate.data(), bytes), "cuMemcpyHtoD");
  check(cuMemsetD8(sum, 0, sizeof(float)), "cuMemsetD8");
  int side = kSide, count = kSide * kSide;
  float rate = kRate;
  for (int i = 0; i < kSteps; ++i) {
    void* arguments[] = {&now, &next, &side, &rate};
    check(cuLaunchKernel(step, kSide / 16, kSide / 16, 1, 16, 16, 1, 0, nullptr, arguments, nullptr),
          "launch step");
    std::swap(now, next);
  }
  void* arguments[] = {&now, &count, &sum};
  check(cuLaunchKernel(total, 8, 1, 1, 256, 1, 1, 0, nullptr, arguments, nullptr), "launch total");
  std::vector<float> result(plate.size());
  float heat = 0;
  check(cuMemcpyDtoH(result.data(), now, bytes), "cuMemcpyDtoH");
  check(cuMemcpyDtoH(&heat, sum, sizeof heat), "cuMemcpyDtoH");
  const double computed = seconds_since(compute);

  const std::vector<float> expected = reference(plate);
  double worst = 0, expected_heat = 0;
  for (size_t i = 0; i < result.size(); ++i) {
    worst = std::fmax(worst, std::fabs(result[i] - expected[i]));
    expected_heat += expected[i];
  }
  const bool right = worst < 1e-3 && std::fabs(heat - expected_heat) < 1e-4 * expected_heat;
  std::printf(
      "{\"device\": \"%s\", \"setup_s\": %.4f, \"compute_s\": %.4f, \"launches\": %d, \"worst_error\": %.2e, "
      "\"heat\": %.3f, \"expected_heat\": %.3f, \"right\": %s}\n",
      name, setup, computed, kSteps + 1, worst, heat, expected_heat, right ? "true" : "false");
  return right ? 0 : 1;
}
