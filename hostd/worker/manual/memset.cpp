// Memsets: the message is the same for all six, the function says which.
#include "hostd/worker/worker.hpp"
#include "wire/cpp/copy_message.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

wire::Memset read(Request& request, u64 highest) {
  if (!request.stream_handle) throw wire::ProtocolError("a memset without a stream");
  const auto memset = request.in.get<wire::Memset>();
  request.in.finish();
  if (memset.value > highest) throw wire::ProtocolError("a memset value that does not fit its element");
  return memset;
}

}  // namespace

CUresult handle_cuMemsetD8Async(Worker& worker, Request& request) {
  const wire::Memset set = read(request, 0xff);
  return worker.driver.cuMemsetD8Async(set.device, static_cast<u8>(set.value), set.width, request.stream);
}

CUresult handle_cuMemsetD16Async(Worker& worker, Request& request) {
  const wire::Memset set = read(request, 0xffff);
  return worker.driver.cuMemsetD16Async(set.device, static_cast<u16>(set.value), set.width, request.stream);
}

CUresult handle_cuMemsetD32Async(Worker& worker, Request& request) {
  const wire::Memset set = read(request, 0xffff'ffff);
  return worker.driver.cuMemsetD32Async(set.device, static_cast<u32>(set.value), set.width, request.stream);
}

CUresult handle_cuMemsetD2D8Async(Worker& worker, Request& request) {
  if (worker.driver.cuMemsetD2D8Async == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const wire::Memset set = read(request, 0xff);
  return worker.driver.cuMemsetD2D8Async(set.device, set.pitch, static_cast<u8>(set.value), set.width,
                                         set.height, request.stream);
}

CUresult handle_cuMemsetD2D16Async(Worker& worker, Request& request) {
  if (worker.driver.cuMemsetD2D16Async == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const wire::Memset set = read(request, 0xffff);
  return worker.driver.cuMemsetD2D16Async(set.device, set.pitch, static_cast<u16>(set.value), set.width,
                                          set.height, request.stream);
}

CUresult handle_cuMemsetD2D32Async(Worker& worker, Request& request) {
  if (worker.driver.cuMemsetD2D32Async == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const wire::Memset set = read(request, 0xffff'ffff);
  return worker.driver.cuMemsetD2D32Async(set.device, set.pitch, static_cast<u32>(set.value), set.width,
                                          set.height, request.stream);
}

}  // namespace gpupool::worker
