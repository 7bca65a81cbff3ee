// The window's heap: pinned host memory for the program, and room for payloads that are too large for
// staging. Pinned memory is carved from segments that the worker has registered with the GPU; no allocation
// spans two segments, because a copy across two registrations fails (measured on driver 580).
#pragma once

#include <map>
#include <mutex>

#include "guest/runtime/session.hpp"

namespace gpupool::guest {

// First-fit ranges of [begin, end), coalesced when given back.
class RangeSet {
 public:
  void add(u64 offset, u64 size);
  // Offset of `size` bytes taken from the set, a multiple of `alignment`, or 0.
  u64 take(u64 size, u64 alignment = 1);
  bool covers(u64 offset, u64 size) const;

 private:
  std::map<u64, u64> ranges_;  // offset -> size
};

class Heap {
 public:
  explicit Heap(const wire::Window& window);
  // `registered`: memory that the GPU reaches; may ask the worker, and then returns its error.
  Bulk allocate(u64 bytes, bool registered, CUresult& error);
  void free(const Bulk& bulk);
  u64 pinned_offset(const void* address, u64 bytes);

 private:
  struct Segment {
    u64 size = 0;
    u64 used = 0;
    RangeSet free;
  };
  Bulk carve(u64 bytes);
  CUresult add_segment(u64 bytes);
  void drop_segment(std::map<u64, Segment>::iterator segment);

  std::mutex mutex_;
  wire::Window window_;
  RangeSet free_;                    // window space that is no segment and no unregistered piece
  std::map<u64, Segment> segments_;  // by offset
  std::map<u64, u64> pinned_;        // allocation offset -> size
  u64 idle_bytes_ = 0;               // in segments that hold no allocation
};

}  // namespace gpupool::guest
