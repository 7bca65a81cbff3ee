#include "guest/nvml/library.hpp"

#include <algorithm>
#include <array>
#include <mutex>

#include "guest/runtime/log.hpp"

namespace gpupool::guest::nvml {
namespace {

struct State {
  std::mutex mutex;
  unsigned int users = 0;  // nvmlInit minus nvmlShutdown
  Snapshot snapshot;       // of the first nvmlInit
  bool lost_said = false;
};

// Never destroyed: programs ask NVML from their exit handlers.
State& state() {
  static State& one = *new State;
  return one;
}

std::array<nvmlDevice_st, wire::kReportMaxGpus>& handles() {
  static std::array<nvmlDevice_st, wire::kReportMaxGpus> all = [] {
    std::array<nvmlDevice_st, wire::kReportMaxGpus> made{};
    for (unsigned int i = 0; i < made.size(); ++i) made[i].index = i;
    return made;
  }();
  return all;
}

nvmlReturn_t start() {
  State& one = state();
  {
    const std::lock_guard lock(one.mutex);
    if (one.users > 0) {
      ++one.users;
      return NVML_SUCCESS;
    }
  }
  // Not under the lock: a fork meanwhile must not leave it taken for seconds. Two first calls ask twice.
  Snapshot snapshot;
  std::string why;
  if (!ask_host(snapshot, why)) {
    log_line("NVML: %s", why.c_str());
    return NVML_ERROR_DRIVER_NOT_LOADED;
  }
  const std::lock_guard lock(one.mutex);
  if (one.users++ == 0) one.snapshot = std::move(snapshot);
  one.lost_said = false;
  return NVML_SUCCESS;
}

// The index behind a handle of ours, without trusting the pointer.
bool index_of(nvmlDevice_t device, size_t gpus, unsigned int& index) {
  const auto& all = handles();
  for (index = 0; index < std::min(gpus, all.size()); ++index)
    if (device == &all[index]) return true;
  return false;
}

const char* error_text(nvmlReturn_t result) {
  switch (result) {
    case NVML_SUCCESS:
      return "Success";
    case NVML_ERROR_UNINITIALIZED:
      return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT:
      return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED:
      return "Not Supported";
    case NVML_ERROR_NO_PERMISSION:
      return "Insufficient Permissions";
    case NVML_ERROR_ALREADY_INITIALIZED:
      return "Already Initialized";
    case NVML_ERROR_NOT_FOUND:
      return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE:
      return "Insufficient Size";
    case NVML_ERROR_INSUFFICIENT_POWER:
      return "Insufficient External Power";
    case NVML_ERROR_DRIVER_NOT_LOADED:
      return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT:
      return "Timeout";
    case NVML_ERROR_IRQ_ISSUE:
      return "Interrupt Request Issue";
    case NVML_ERROR_LIBRARY_NOT_FOUND:
      return "NVML Shared Library Not Found";
    case NVML_ERROR_FUNCTION_NOT_FOUND:
      return "Function Not Found";
    case NVML_ERROR_CORRUPTED_INFOROM:
      return "Corrupted infoROM";
    case NVML_ERROR_GPU_IS_LOST:
      return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED:
      return "GPU requires reset";
    case NVML_ERROR_OPERATING_SYSTEM:
      return "GPU access blocked by the operating system";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH:
      return "Driver/library version mismatch";
    case NVML_ERROR_IN_USE:
      return "In use by another client";
    case NVML_ERROR_MEMORY:
      return "Insufficient Memory";
    case NVML_ERROR_NO_DATA:
      return "No data";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
      return "Argument version mismatch";
    case NVML_ERROR_GPU_NOT_FOUND:
      return "No GPUs were found";
    default:
      return "Unknown Error";
  }
}

}  // namespace

nvmlReturn_t known(Snapshot& snapshot) {
  State& one = state();
  const std::lock_guard lock(one.mutex);
  if (one.users == 0) return NVML_ERROR_UNINITIALIZED;
  snapshot = one.snapshot;
  return NVML_SUCCESS;
}

nvmlReturn_t fresh(Snapshot& snapshot) {
  State& one = state();
  {
    const std::lock_guard lock(one.mutex);
    if (one.users == 0) return NVML_ERROR_UNINITIALIZED;
  }
  std::string why;
  if (ask_host(snapshot, why)) return NVML_SUCCESS;
  const std::lock_guard lock(one.mutex);
  if (!one.lost_said) log_line("NVML: %s", why.c_str());
  one.lost_said = true;
  return NVML_ERROR_GPU_IS_LOST;
}

nvmlReturn_t find(nvmlDevice_t device, wire::GpuReport& gpu) {
  State& one = state();
  const std::lock_guard lock(one.mutex);
  if (one.users == 0) return NVML_ERROR_UNINITIALIZED;
  unsigned int index = 0;
  if (!index_of(device, one.snapshot.gpus.size(), index)) return NVML_ERROR_INVALID_ARGUMENT;
  gpu = one.snapshot.gpus[index];
  return NVML_SUCCESS;
}

nvmlReturn_t find_fresh(nvmlDevice_t device, wire::GpuReport& gpu,
                        std::vector<wire::ProcessReport>& processes) {
  if (const nvmlReturn_t result = find(device, gpu); result != NVML_SUCCESS) return result;
  Snapshot now;
  if (const nvmlReturn_t result = fresh(now); result != NVML_SUCCESS) return result;
  // By UUID: a card that the host has lost meanwhile must not make another one answer.
  for (u32 place = 0; place < now.gpus.size(); ++place) {
    if (text_of(now.gpus[place].uuid) != text_of(gpu.uuid)) continue;
    gpu = now.gpus[place];
    processes.clear();
    for (const wire::ProcessReport& process : now.processes)
      if (process.gpu == place) processes.push_back(process);
    return NVML_SUCCESS;
  }
  return NVML_ERROR_GPU_IS_LOST;
}

nvmlDevice_t handle_at(unsigned int index) {
  State& one = state();
  const std::lock_guard lock(one.mutex);
  return index < one.snapshot.gpus.size() && index < handles().size() ? &handles()[index] : nullptr;
}

nvmlReturn_t unsupported(const char* name) {
  {
    State& one = state();
    const std::lock_guard lock(one.mutex);
    if (one.users == 0) return NVML_ERROR_UNINITIALIZED;
  }
  // Monitoring programs ask for everything and take no for an answer: not worth a line by itself.
  log_debug("%s: not supported", name);
  return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t copy_text(const std::string& text, char* to, unsigned int length) {
  if (to == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  if (length <= text.size()) return NVML_ERROR_INSUFFICIENT_SIZE;
  std::memcpy(to, text.c_str(), text.size() + 1);
  return NVML_SUCCESS;
}

}  // namespace gpupool::guest::nvml

using namespace gpupool::guest::nvml;  // what the exported functions below are made of

extern "C" {

nvmlReturn_t nvmlInit(void) {
  return start();
}

nvmlReturn_t nvmlInit_v2(void) {
  return start();
}

// The flags let nvmlInit succeed where there is no GPU, or not touch the GPUs; ours needs neither.
nvmlReturn_t nvmlInitWithFlags(unsigned int) {
  return start();
}

nvmlReturn_t nvmlShutdown(void) {
  State& one = state();
  const std::lock_guard lock(one.mutex);
  if (one.users == 0) return NVML_ERROR_UNINITIALIZED;
  --one.users;
  return NVML_SUCCESS;
}

const char* nvmlErrorString(nvmlReturn_t result) {
  return error_text(result);
}

}  // extern "C"
