// cuGraphDebugDotPrint. The driver wants a path; it gets one of a file in memory, whose text the client
// writes to the program's file.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "hostd/worker/manual/graph.hpp"
#include "wire/cpp/graph_message.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// A file that has no name and ends with this object.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(memfd_create("gpupool-graph", MFD_CLOEXEC)) {}
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  [[nodiscard]] bool open() const { return descriptor_ >= 0; }
  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  [[nodiscard]] u64 size() const {
    struct stat status {};
    return fstat(descriptor_, &status) == 0 ? static_cast<u64>(status.st_size) : 0;
  }
  bool read(std::vector<u8>& out) const {
    u64 done = 0;
    while (done < out.size()) {
      const ssize_t got = pread(descriptor_, out.data() + done, out.size() - done, static_cast<off_t>(done));
      if (got <= 0) return false;
      done += static_cast<u64>(got);
    }
    return true;
  }

 private:
  int descriptor_;
};

}  // namespace

// graph, u32 flags, u64 room -> u64 bytes, and if that is no more than the room u8[].
CUresult handle_cuGraphDebugDotPrint(Worker& worker, Request& request) {
  const CUgraph* graph = worker.graphs.find(request.in.get<wire::Handle>());
  const auto flags = request.in.get<u32>();
  const auto room = request.in.get<u64>();
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuGraphDebugDotPrint == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const MemoryFile file;
  if (!file.open()) return CUDA_ERROR_OPERATING_SYSTEM;
  const CUresult result = worker.driver.cuGraphDebugDotPrint(*graph, file.path().c_str(), flags);
  if (result != CUDA_SUCCESS) return result;
  const u64 bytes = file.size();
  if (bytes > wire::kMostDotBytes) return CUDA_ERROR_OUT_OF_MEMORY;
  request.out->put(bytes);
  if (bytes > room) return CUDA_SUCCESS;
  std::vector<u8> text(bytes);
  if (!file.read(text)) return CUDA_ERROR_OPERATING_SYSTEM;
  request.out->put_array(text.data(), text.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
