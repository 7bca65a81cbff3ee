// What the kernel may still read from the window: pieces that were sent by reference (zero_copy.hpp) and
// whose completion notices have not all come. Opened by the thread that sends, closed by whoever reads the
// last notice, asked by the threads that are about to let a piece be used again.
#pragma once

#include <atomic>
#include <deque>
#include <mutex>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

class SentPieces {
 public:
  // A piece that is about to be sent: [offset, +size) of the window, needed by the message that `mark` stands
  // for (its ticket + 1; marks only grow). Its number, never 0.
  u64 open(u64 mark, u64 offset, u64 size) {
    const std::lock_guard lock(mutex_);
    pieces_.push_back({mark, offset, size, size});
    open_.store(pieces_.size(), std::memory_order_seq_cst);
    return first_ + pieces_.size() - 1;
  }

  // The kernel has let go of that many of its bytes.
  void done(u64 number, u64 bytes) {
    const std::lock_guard lock(mutex_);
    pieces_[number - first_].left -= bytes;
    while (!pieces_.empty() && pieces_.front().left == 0) {
      pieces_.pop_front();
      ++first_;
    }
    open_.store(pieces_.size(), std::memory_order_seq_cst);
  }

  // All that anybody pays who has sent nothing by reference: a load.
  [[nodiscard]] bool none() const { return open_.load(std::memory_order_seq_cst) == 0; }

  // Whether everything up to `mark` is ours again.
  [[nodiscard]] bool done_until(u64 mark) const {
    const std::lock_guard lock(mutex_);
    for (const Piece& piece : pieces_) {
      if (piece.mark > mark) return true;
      if (piece.left != 0) return false;
    }
    return true;
  }

  // Whether [offset, +size) is.
  [[nodiscard]] bool done_with(u64 offset, u64 size) const {
    const std::lock_guard lock(mutex_);
    for (const Piece& piece : pieces_)
      if (piece.left != 0 && offset < piece.offset + piece.size && piece.offset < offset + size) return false;
    return true;
  }

 private:
  struct Piece {
    u64 mark, offset, size;
    u64 left;  // bytes
  };
  mutable std::mutex mutex_;
  std::deque<Piece> pieces_;
  u64 first_ = 1;  // number of the front
  std::atomic<u64> open_{0};
};

}  // namespace gpupool::wire
