// cuGraphDebugDotPrint: the worker's driver writes the text, the file is the program's own.
#include <cstdio>
#include <memory>

#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"  // generated
#include "wire/cpp/graph_message.hpp"

namespace gpupool::guest::api {

CUresult cuGraphDebugDotPrint(CUgraph graph, const char* path, unsigned int flags) {
  if (graph == nullptr || path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::vector<char> text;
  for (u64 room = 64u << 10;;) {
    Call call(wire::Function::cuGraphDebugDotPrint);
    call.put(bits(graph));
    call.put(static_cast<u32>(flags));
    call.put(room);
    call.expect_answer(room + 64);
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    const auto bytes = call.get<u64>();
    if (bytes > wire::kMostDotBytes) return CUDA_ERROR_OUT_OF_MEMORY;
    if (bytes > room) {
      room = bytes;  // written again, into more room
      continue;
    }
    text.resize(bytes);
    call.get_array(text.data(), text.size());
    break;
  }
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path, "we"), &std::fclose);
  if (file == nullptr) return CUDA_ERROR_OPERATING_SYSTEM;
  const bool written = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size();
  return written && std::fflush(file.get()) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

}  // namespace gpupool::guest::api
