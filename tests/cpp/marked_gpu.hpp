// A worker on a GPU that does nothing by itself: what is put on a stream is done when the test says so. For
// tests of the compute lease (hostd/worker/gate.hpp, in_flight.hpp).
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "hostd/pages/lease_page.hpp"
#include "hostd/worker/in_flight.hpp"
#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

class MarkedGpu {
 public:
  static constexpr u32 kContext = 1;

  MarkedGpu() {
    current() = this;
    worker.devices = {0, 1};
    worker.stream_memory_operations = false;  // marks are host functions
    worker.driver.cuLaunchHostFunc = [](CUstream stream, CUhostFn function, void* data) {
      MarkedGpu& gpu = *current();
      ++gpu.marks;
      if (gpu.refuses) return CUDA_ERROR_INVALID_CONTEXT;
      gpu.waiting_[stream].push_back({function, data});
      return CUDA_SUCCESS;
    };
    worker.driver.cuStreamGetFlags = [](CUstream stream, unsigned int* flags) {
      *flags = stream == current()->non_blocking ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT;
      return CUDA_SUCCESS;
    };
    // As many contexts as GPUs, by index from 1.
    worker.driver.cuCtxGetDevice = [](CUdevice* device) {
      *device = static_cast<CUdevice>(current()->entered - 1);
      return CUDA_SUCCESS;
    };
    for (u32 index = 1; index <= 2; ++index)
      worker.contexts.put(context(index), reinterpret_cast<CUcontext>(u64{0x1000} * index));
  }
  ~MarkedGpu() {
    while (!waiting_.empty()) done(waiting_.begin()->first);  // frees what the marks hold
    current() = nullptr;
  }
  MarkedGpu(const MarkedGpu&) = delete;
  MarkedGpu& operator=(const MarkedGpu&) = delete;

  static wire::Handle context(u32 index) { return wire::Handle::make(wire::HandleKind::context, 0, index); }
  // A stream of the client; null: the legacy one.
  wire::Handle stream(u64 driver, u32 of_context = kContext) {
    const auto handle = wire::Handle::make(wire::HandleKind::stream, 1, ++streams_);
    StreamEntry entry;
    entry.stream = reinterpret_cast<CUstream>(driver);
    entry.context = of_context;
    worker.streams.put(handle, entry);
    return handle;
  }
  InFlight::MakeCurrent make_current() {
    return [this](u32 index) { return worker.contexts.find(context(index)) != nullptr; };
  }
  // Everything on that stream is done.
  void done(CUstream stream) {
    for (const Mark& mark : waiting_[stream]) mark.function(mark.data);
    waiting_.erase(stream);
  }
  void done(u64 driver) { done(reinterpret_cast<CUstream>(driver)); }
  // The oldest mark on it alone.
  void one_done(u64 driver) {
    std::deque<Mark>& marks_there = waiting_[reinterpret_cast<CUstream>(driver)];
    marks_there.front().function(marks_there.front().data);
    marks_there.pop_front();
  }

  Worker worker;
  u32 marks = 0;                    // that the driver was asked for
  u32 entered = 1;                  // the context that is current
  bool refuses = false;             // marks
  CUstream non_blocking = nullptr;  // does not wait for the legacy stream

 private:
  struct Mark {
    CUhostFn function;
    void* data;
  };
  static MarkedGpu*& current() {
    static MarkedGpu* gpu = nullptr;
    return gpu;
  }
  std::map<CUstream, std::deque<Mark>> waiting_;
  u32 streams_ = 0;
};

}  // namespace gpupool::worker
