// How much of the host one session may take: every cap is here, hostd's configuration fills it ([limits],
// docs/configuration.md). What a cap refuses is CUDA_ERROR_OUT_OF_MEMORY in the client, and one line in the
// log for each kind and session.
#pragma once

#include <map>
#include <string_view>

#include "wire/cpp/layout.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::worker {

inline constexpr u32 kMostHandles = (1u << 20) - 1;

struct Caps {
  u64 pinned_bytes = ~u64{0};      // host memory registered with the GPU, beside the window's fixed part
  u64 image_bytes = 8ull << 30;    // code images that libraries keep
  u32 handles = kMostHandles;      // of each kind
  u32 streams = wire::kWords - 1;  // each context has two of its own
  bool scrub = true;               // fresh device memory is cleared
};

// Logs it, once a session for each `what`.
void note_cap(std::string_view what);

// Host memory that is registered with the GPU, by address.
class PinnedMemory {
 public:
  // False (and noted) when that much more is above the cap.
  bool take(const Caps& caps, u64 address, u64 bytes);
  void give_back(u64 address);

 private:
  std::map<u64, u64> pieces_;
  u64 bytes_ = 0;
};

}  // namespace gpupool::worker
