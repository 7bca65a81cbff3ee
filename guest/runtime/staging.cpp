#include "guest/runtime/staging.hpp"

namespace gpupool::guest {
namespace {

constexpr u64 kAlignment =
    256;  // a copy engine is fastest from aligned memory, and pieces never share a cache line

u64 round_up(u64 bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Bulk Staging::try_take(u64 bytes, Completion& oldest,
                       const std::function<bool(const Completion&)>& complete) {
  const u64 size = round_up(bytes == 0 ? 1 : bytes);
  const std::lock_guard lock(mutex_);
  while (!pieces_.empty() && pieces_.front().released && complete(pieces_.front().completion))
    pieces_.pop_front();
  if (pieces_.empty()) next_ = 0;
  // In use: [begin, next_) or, wrapped, [begin, end) and [0, next_).
  const u64 begin = pieces_.empty() ? 0 : pieces_.front().offset - wire::kStagingOffset;
  u64 start = next_;
  bool fits = false;
  if (pieces_.empty()) {
    start = 0;
    fits = size <= wire::kStagingBytes;
  } else if (next_ > begin) {
    fits = next_ + size <= wire::kStagingBytes;
    if (!fits && size < begin) {  // strictly: next_ == begin must keep meaning "full", never "empty"
      start = 0;
      fits = true;
    }
  } else {
    fits = next_ + size < begin;
  }
  if (!fits) {
    oldest = pieces_.empty() || !pieces_.front().released ? Completion{} : pieces_.front().completion;
    return {};
  }
  pieces_.push_back(Piece{wire::kStagingOffset + start, size, false, {}});
  next_ = start + size;
  return Bulk{wire::kStagingOffset + start, bytes, window_.base + wire::kStagingOffset + start};
}

void Staging::release(const Bulk& bulk, Completion completion) {
  const std::lock_guard lock(mutex_);
  if (bulk.offset >= wire::kHeapOffset) {
    heap_pieces_.push_back(HeapPiece{bulk, completion});
    return;
  }
  // The newest pieces are at the back, and a thread releases soon after it took.
  for (auto piece = pieces_.rbegin(); piece != pieces_.rend(); ++piece) {
    if (piece->offset != bulk.offset || piece->released) continue;
    piece->released = true;
    piece->completion = completion;
    return;
  }
}

std::vector<Bulk> Staging::finished_heap_pieces(const std::function<bool(const Completion&)>& complete) {
  std::vector<Bulk> finished;
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < heap_pieces_.size();) {
    if (complete(heap_pieces_[i].completion)) {
      finished.push_back(heap_pieces_[i].bulk);
      heap_pieces_[i] = heap_pieces_.back();
      heap_pieces_.pop_back();
    } else {
      ++i;
    }
  }
  return finished;
}

}  // namespace gpupool::guest
