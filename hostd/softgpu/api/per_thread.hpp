// Whether the entry point in progress is one of the variants whose stream 0 is the thread's own (_ptds,
// _ptsz).
#pragma once

namespace gpupool::softgpu {

bool per_thread_default();

// Marks the scope of such an entry point.
class PerThreadDefault {
 public:
  PerThreadDefault();
  ~PerThreadDefault();
  PerThreadDefault(const PerThreadDefault&) = delete;
  PerThreadDefault& operator=(const PerThreadDefault&) = delete;

 private:
  bool before_;
};

}  // namespace gpupool::softgpu
