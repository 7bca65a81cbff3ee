// A client that changes memory the moment the worker has read it. Watched pages are inaccessible; every read
// faults, is executed alone, and what it read is then inverted. Whoever reads once never notices.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::test {

// Watches [begin, +bytes), whole pages, in the calling thread. One watch at a time.
class FetchWatch {
 public:
  FetchWatch(u8* begin, u64 bytes);
  ~FetchWatch();  // puts everything back
  FetchWatch(const FetchWatch&) = delete;
  FetchWatch& operator=(const FetchWatch&) = delete;
  // Instructions that read watched memory so far.
  [[nodiscard]] u64 reads() const;
};

}  // namespace gpupool::test
