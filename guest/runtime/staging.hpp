// The staging area: a ring of pieces of the window, handed out in order and taken back in order once what
// used them has completed. Large or late pieces come from the heap instead and are freed the same way.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "guest/runtime/session.hpp"

namespace gpupool::guest {

class Staging {
 public:
  explicit Staging(const wire::Window& window) : window_(window) {}

  // A piece, or null when there is no room now; then `oldest` says what to wait for, or is empty (value 0)
  // when the oldest piece has not been released yet.
  Bulk try_take(u64 bytes, Completion& oldest, const std::function<bool(const Completion&)>& complete);
  // Marks the piece as in use until `completion`.
  void release(const Bulk& bulk, Completion completion);
  // Heap pieces whose completion has come; the caller frees them.
  std::vector<Bulk> finished_heap_pieces(const std::function<bool(const Completion&)>& complete);

 private:
  struct Piece {
    u64 offset;
    u64 size;
    bool released;
    Completion completion;
  };
  std::mutex mutex_;
  wire::Window window_;
  std::deque<Piece> pieces_;  // oldest first
  u64 next_ = 0;              // where the next piece starts, relative to kStagingOffset
  struct HeapPiece {
    Bulk bulk;
    Completion completion;
  };
  std::vector<HeapPiece> heap_pieces_;
};

}  // namespace gpupool::guest
