// Questions about the system as a whole.
#include <fcntl.h>

#include <algorithm>

#include "guest/nvml/library.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "wire/cpp/version.hpp"

using namespace gpupool;               // wire::
using namespace gpupool::guest::nvml;  // what the exported functions below are made of

namespace {

// The oldest and the newest NVML that this library could be: that of the header it was built from.
constexpr char kNvmlMajor[] = NVML_API_VERSION_STR;

nvmlReturn_t cuda_version(int* version) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  if (version == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  // As cuDriverGetVersion: never more than the guest's libcuda was generated for.
  const unsigned int host = snapshot.head.cuda_version;
  *version = static_cast<int>(host == 0 ? wire::kCudaVersion : std::min(host, wire::kCudaVersion));
  return NVML_SUCCESS;
}

// argv[0] of a process that this one can see. Empty when it cannot.
std::string command_of(unsigned int pid) {
  const guest::Descriptor fd(
      open(("/proc/" + std::to_string(pid) + "/cmdline").c_str(), O_RDONLY | O_CLOEXEC));
  char command[4096];
  const ssize_t got = fd.get() < 0 ? -1 : read(fd.get(), command, sizeof command);
  return got <= 0 ? "" : std::string(command, strnlen(command, static_cast<size_t>(got)));
}

}  // namespace

extern "C" {

nvmlReturn_t nvmlSystemGetDriverVersion(char* version, unsigned int length) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  return copy_text(text_of(snapshot.head.driver_version), version, length);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char* version, unsigned int length) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  return copy_text(kNvmlMajor + ("." + text_of(snapshot.head.driver_version)), version, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int* version) {
  return cuda_version(version);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int* version) {
  return cuda_version(version);
}

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char* name, unsigned int length) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  if (name == nullptr || length == 0) return NVML_ERROR_INVALID_ARGUMENT;
  std::string text = command_of(pid);
  if (text.empty()) {  // in another pid namespace of this guest: then the name it gave itself
    if (const nvmlReturn_t result = fresh(snapshot); result != NVML_SUCCESS) return result;
    for (const wire::ProcessReport& process : snapshot.processes)
      if (process.pid == pid) text = text_of(process.program);
  }
  if (text.empty()) return NVML_ERROR_NOT_FOUND;
  return copy_text(text.substr(0, length - 1), name, length);  // cut to the room there is, as documented
}

nvmlReturn_t nvmlUnitGetCount(unsigned int* count) {
  Snapshot snapshot;
  if (const nvmlReturn_t result = known(snapshot); result != NVML_SUCCESS) return result;
  if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *count = 0;  // S-class systems
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlGetExcludedDeviceCount(unsigned int* count) {
  if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
  *count = 0;
  return NVML_SUCCESS;
}

}  // extern "C"
