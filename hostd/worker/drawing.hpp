// OpenGL's work on the GPU, as the compute lease and the dispatcher see it: it is known to be done by fences
// of OpenGL instead of words that the GPU writes. hostd/worker/opengl has it.
//
// Only the dispatcher comes here.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

struct Request;

class Drawing {
 public:
  Drawing() = default;
  Drawing(const Drawing&) = delete;
  Drawing& operator=(const Drawing&) = delete;
  virtual ~Drawing() = default;

  // Whether there may be work that no fence is behind.
  [[nodiscard]] virtual bool has_work() const = 0;
  // Puts fences behind all work so far; a number that grows, for passed().
  virtual u64 fence() = 0;
  // Whether all work before that fence is done. Never waits.
  virtual bool passed(u64 fence) = 0;

  // Takes the next message whose answer waits for the GPU, if the GPU is done with it by `until_ns`
  // (0: without waiting), and executes what was left of it: then true, and `request` is to be answered.
  virtual bool resume(Request& request, u64 until_ns) = 0;
};

}  // namespace gpupool::worker
