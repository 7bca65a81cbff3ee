#include "guest/runtime/manual/copy_sender.hpp"

#include <mutex>
#include <vector>

#include "guest/runtime/thread_state.hpp"

namespace gpupool::guest {
namespace {

constexpr u64 kSmallPiece = 64 << 10;
constexpr u64 kLargePiece = kCopyChunk * kCopyDepth;
constexpr size_t kKeepSmall = 64;  // idle pieces kept; more go back to the heap
constexpr size_t kKeepLarge = 4;

struct IdlePieces {
  std::mutex mutex;
  std::vector<Bulk> small;
  std::vector<Bulk> large;

  // Never destroyed: programs copy in their exit handlers.
  static IdlePieces& instance() {
    static auto* pieces = new IdlePieces();
    return *pieces;
  }
};

}  // namespace

CopySender::CopySender(Session& session, Stream& stream) : session_(session), stream_(stream) {
  const Context* context = current_context();
  context_ = context == nullptr ? 0 : context->index;
}

void CopySender::fail(CUresult error) {
  CUresult none = CUDA_SUCCESS;
  error_.compare_exchange_strong(none, error, std::memory_order_acq_rel);
}

void CopySender::refuse() {
  const CUresult failed = session_.failed();
  fail(failed != CUDA_SUCCESS ? failed : CUDA_ERROR_OUT_OF_MEMORY);  // more than wire::kThreads threads
}

bool CopySender::wait(u64 value) {
  const CUresult result = session_.wait_word(stream_.handle.index(), value);
  if (result == CUDA_SUCCESS) return true;
  fail(result);
  return false;
}

ReturnPiece::ReturnPiece(Session& session, u64 bytes) : session_(session), small_(bytes <= kSmallPiece) {
  IdlePieces& idle = IdlePieces::instance();
  {
    const std::lock_guard lock(idle.mutex);
    std::vector<Bulk>& pieces = small_ ? idle.small : idle.large;
    if (!pieces.empty()) {
      bulk_ = pieces.back();
      pieces.pop_back();
      return;
    }
  }
  bulk_ = session.heap_allocate(small_ ? kSmallPiece : kLargePiece, true, error_);
  if (!bulk_ && error_ == CUDA_SUCCESS) error_ = CUDA_ERROR_OUT_OF_MEMORY;
}

ReturnPiece::~ReturnPiece() {
  if (!bulk_) return;
  IdlePieces& idle = IdlePieces::instance();
  {
    const std::lock_guard lock(idle.mutex);
    std::vector<Bulk>& pieces = small_ ? idle.small : idle.large;
    if (pieces.size() < (small_ ? kKeepSmall : kKeepLarge)) {
      pieces.push_back(bulk_);
      return;
    }
  }
  session_.heap_free(bulk_);
}

}  // namespace gpupool::guest
