// What streams execute and graphs hold, besides kernels (launch.hpp): copies, fills, host functions, event
// marks, stores to and waits on memory.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "hostd/softgpu/api/event.hpp"
#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

struct Array;

// Orders, and does nothing.
class EmptyOperation final : public Operation {
 public:
  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_EMPTY; }
  CUresult run(Context&) const override { return CUDA_SUCCESS; }
};

// One side of a copy.
struct CopySide {
  u64 base = 0;                  // of the first byte to be copied
  u64 pitch = 0;                 // from row to row
  u64 slice = 0;                 // from plane to plane
  bool known = false;            // in the memory table, so it is checked again when the copy runs
  bool pageable = false;         // host memory the devices do not know
  std::shared_ptr<Array> array;  // keeps an array's memory
};

class CopyOperation final : public Operation {
 public:
  CopySide to, from;
  u64 width = 0, height = 1, depth = 1;
  CUDA_MEMCPY3D parameters{};               // as a graph's memcpy node reports them
  std::shared_ptr<std::vector<u8>> staged;  // a copy of a pageable source, where `from` points

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_MEMCPY; }
  CUresult run(Context& context) const override;
};

class MemsetOperation final : public Operation {
 public:
  CUDA_MEMSET_NODE_PARAMS parameters{};

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_MEMSET; }
  CUresult run(Context& context) const override;
};

class HostOperation final : public Operation {
 public:
  CUDA_HOST_NODE_PARAMS parameters{};

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_HOST; }
  CUresult run(Context&) const override {
    parameters.fn(parameters.userData);
    return CUDA_SUCCESS;
  }
};

// cuStreamAddCallback: told of the context's state, so it also runs after a fault.
class CallbackOperation final : public Operation {
 public:
  CUstream stream = nullptr;
  CUstreamCallback callback = nullptr;
  void* data = nullptr;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_HOST; }
  CUresult run(Context& context) const override {
    callback(stream, context.state(), data);
    return CUDA_SUCCESS;
  }
  bool runs_after_fault() const override { return true; }
};

// Notes the time at which a stream gets here. The fence of the work is the recording's.
class MarkOperation final : public Operation {
 public:
  std::shared_ptr<Recording> recording;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_EVENT_RECORD; }
  CUresult run(Context& context) const override;
};

// A graph's event nodes: which recording is meant is decided at each launch.
class EventNodeOperation final : public Operation {
 public:
  std::shared_ptr<Event> event;
  bool record = false;  // else wait

  CUgraphNodeType type() const override {
    return record ? CU_GRAPH_NODE_TYPE_EVENT_RECORD : CU_GRAPH_NODE_TYPE_WAIT_EVENT;
  }
  // What one launch executes. A record is the event's newest, and pending, from this call on.
  OperationPtr for_launch() const;
  CUresult run(Context&) const override { return CUDA_ERROR_UNKNOWN; }  // for_launch() runs instead
};

// cuStreamWriteValue, cuStreamWaitValue and batches of them.
class ValueOperation final : public Operation {
 public:
  std::vector<CUstreamBatchMemOpParams> steps;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_BATCH_MEM_OP; }
  CUresult run(Context& context) const override;
};
// Checks addresses, alignment and flags. Error INVALID_VALUE or NOT_SUPPORTED.
std::shared_ptr<ValueOperation> make_value_operation(const CUstreamBatchMemOpParams* steps, u32 count);

// Makes a copy from what cuMemcpy3D takes. Error INVALID_VALUE for ranges that no side has.
std::shared_ptr<CopyOperation> make_copy(const CUDA_MEMCPY3D& parameters);
// The same copy from a private copy of its source, taken now.
std::shared_ptr<CopyOperation> with_staged_source(const CopyOperation& copy);
// Error INVALID_VALUE unless the destination is there.
std::shared_ptr<MemsetOperation> make_memset(const CUDA_MEMSET_NODE_PARAMS& parameters);

// Frees stream-ordered memory (pool.cpp).
class FreeOperation final : public Operation {
 public:
  u64 address = 0;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_MEM_FREE; }
  CUresult run(Context& context) const override;
  bool runs_after_fault() const override { return true; }
};

}  // namespace gpupool::softgpu
