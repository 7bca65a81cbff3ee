// The guest's NVML: the state between nvmlInit and nvmlShutdown, and what every answer is made of. It needs
// no CUDA session: it asks hostd (wire/cpp/query.hpp) over the endpoint that libcuda uses. Constants are
// asked for once, at nvmlInit; what changes (memory, load, processes) at each question, so nothing runs in
// between.
#pragma once

#include <nvml.h>

#include <cstring>
#include <string>
#include <vector>

#include "wire/cpp/query.hpp"

// What an nvmlDevice_t points to: the program never looks inside.
struct nvmlDevice_st {
  unsigned int index;  // in NVML's order
};

namespace gpupool::guest::nvml {

// One answer of the host.
struct Snapshot {
  wire::Report head;
  std::vector<wire::GpuReport> gpus;
  std::vector<wire::ProcessReport> processes;
};

// Asks the host. False with `why` in words for the user, within some seconds at most.
bool ask_host(Snapshot& snapshot, std::string& why);

// The answer that nvmlInit got. NVML_ERROR_UNINITIALIZED outside of init and shutdown.
nvmlReturn_t known(Snapshot& snapshot);
// A new answer. NVML_ERROR_GPU_IS_LOST, and one line on stderr, when the host does not answer any more.
nvmlReturn_t fresh(Snapshot& snapshot);

// The GPU behind a handle, as nvmlInit got it. INVALID_ARGUMENT for what is no handle of ours.
nvmlReturn_t find(nvmlDevice_t device, wire::GpuReport& gpu);
// The same as it is now, with the processes on it.
nvmlReturn_t find_fresh(nvmlDevice_t device, wire::GpuReport& gpu,
                        std::vector<wire::ProcessReport>& processes);
// The handle of the GPU at `index`; null when there is none.
nvmlDevice_t handle_at(unsigned int index);

// NOT_SUPPORTED, said once a function with GPUPOOL_LOG=debug; UNINITIALIZED before nvmlInit.
nvmlReturn_t unsupported(const char* name);

// Copies text out as NVML does: INSUFFICIENT_SIZE when it does not fit with its terminator.
nvmlReturn_t copy_text(const std::string& text, char* to, unsigned int length);

// A text field of a report.
template <size_t N>
std::string text_of(const char (&field)[N]) {
  return std::string(field, strnlen(field, N));
}

// A number of a report: NOT_SUPPORTED where the host does not know it.
template <typename T>
nvmlReturn_t number(nvmlDevice_t device, unsigned int wire::GpuReport::*member, T* to) {
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(device, gpu); result != NVML_SUCCESS) return result;
  if (to == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (gpu.*member == wire::kUnknown) return NVML_ERROR_NOT_SUPPORTED;
  *to = static_cast<T>(gpu.*member);
  return NVML_SUCCESS;
}

// The same answer for every GPU.
template <typename T>
nvmlReturn_t constant(nvmlDevice_t device, T value, T* to) {
  wire::GpuReport gpu;
  if (const nvmlReturn_t result = find(device, gpu); result != NVML_SUCCESS) return result;
  if (to == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *to = value;
  return NVML_SUCCESS;
}

}  // namespace gpupool::guest::nvml
