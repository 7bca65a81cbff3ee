// Batches of copies: one after the other on the stream, which is one of the orders that a batch may have.
#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

struct Batch {
  const CUdeviceptr* destinations;
  const CUdeviceptr* sources;
  const size_t* sizes;
  size_t count;
  const CUmemcpyAttributes* attributes;
  const size_t* first;  // attributes[k] holds for the copies from first[k] on
  size_t kinds;
};

// The rules of cuMemcpyBatchAsync in cuda.h. Location hints concern managed memory only, flags are hints.
bool well_formed(const Batch& batch) {
  if (batch.count == 0 || batch.kinds == 0 || batch.kinds > batch.count) return false;
  if (batch.destinations == nullptr || batch.sources == nullptr || batch.sizes == nullptr ||
      batch.attributes == nullptr || batch.first == nullptr || batch.first[0] != 0)
    return false;
  for (size_t k = 0; k < batch.kinds; ++k) {
    const auto order = batch.attributes[k].srcAccessOrder;
    if (order < CU_MEMCPY_SRC_ACCESS_ORDER_STREAM || order > CU_MEMCPY_SRC_ACCESS_ORDER_ANY) return false;
    if (batch.first[k] >= batch.count || (k > 0 && batch.first[k] <= batch.first[k - 1])) return false;
  }
  return true;
}

CUresult copy_batch(const Batch& batch, CUstream handle, size_t& failed) {
  failed = SIZE_MAX;  // no copy of its own is to blame
  CUresult error = CUDA_SUCCESS;
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return CUDA_ERROR_INVALID_VALUE;
  Stream* stream = copy_stream(handle, CopyCall::asynchronous, error);
  if (stream == nullptr) return error;
  if (!well_formed(batch)) return CUDA_ERROR_INVALID_VALUE;
  bool wait = false;
  for (size_t i = 0, k = 0; i < batch.count; ++i) {
    if (k + 1 < batch.kinds && batch.first[k + 1] == i) ++k;
    const CUresult result = copy_unified(batch.destinations[i], batch.sources[i], batch.sizes[i], *stream,
                                         CopyCall::asynchronous);
    if (result != CUDA_SUCCESS) {
      failed = i;
      return result;
    }
    // A source that may change after the call is read during it; only pinned ones are read later.
    wait |= batch.attributes[k].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL &&
            is_pinned(batch.sources[i]);
  }
  return wait && !stream->capturing ? wait_for_stream(*stream) : CUDA_SUCCESS;
}

}  // namespace

namespace api {

CUresult cuMemcpyBatchAsync(CUdeviceptr* destinations, CUdeviceptr* sources, size_t* sizes, size_t count,
                            CUmemcpyAttributes* attributes, size_t* first, size_t kinds, size_t* failed,
                            CUstream stream) {
  size_t index = 0;
  const CUresult result =
      copy_batch({destinations, sources, sizes, count, attributes, first, kinds}, stream, index);
  if (result != CUDA_SUCCESS && failed != nullptr) *failed = index;
  return result;
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr* destinations, CUdeviceptr* sources, size_t* sizes, size_t count,
                               CUmemcpyAttributes* attributes, size_t* first, size_t kinds, CUstream stream) {
  size_t index = 0;
  return copy_batch({destinations, sources, sizes, count, attributes, first, kinds}, stream, index);
}

}  // namespace api
}  // namespace gpupool::guest
