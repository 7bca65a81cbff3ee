// How much of the GPU's memory images take: from above, and simple. What a driver adds for its own order of
// pixels is its overhead, which hostd measures.
#pragma once

#include "wire/cpp/gl_types.hpp"

namespace gpupool::worker {

// An image as a command describes it, or a level of one.
struct GlImage {
  u64 width = 0, height = 1, depth = 1;
  u32 texel_bytes = 0;
  u32 samples = 1;
  u32 halves = 1;           // how many of its dimensions the next level halves; the others are layers
  bool compressed = false;  // texel_bytes are those of a block of 4x4, a sixteenth

  // Never too few: what is too large to count is ~0.
  [[nodiscard]] u64 bytes() const;
  // The level below; itself when it is the last.
  [[nodiscard]] GlImage next() const;
  [[nodiscard]] bool is_last() const;
};

struct GlTexel {
  u32 bytes = 0;
  bool compressed = false;
};
// Of an internal format; `type` (0: none) is the data's, by which drivers choose where the format leaves it
// open.
GlTexel texel_of(u32 internal_format, u32 type);

}  // namespace gpupool::worker
