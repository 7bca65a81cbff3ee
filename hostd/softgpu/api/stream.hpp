// Streams: queues of operations, each with one executor thread that starts with the first asynchronous work.
//
// Order between streams is made of fences. Work on the legacy stream waits for everything submitted to
// blocking streams before it, and they wait for it; who submits holds Context::submit_mutex, so that order is
// the order of the calls. Fences only ever refer to work submitted earlier, so they cannot deadlock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "hostd/softgpu/api/context.hpp"

namespace gpupool::softgpu {

class Completion {
 public:
  void set() {
    done_.store(1, std::memory_order_release);
    done_.notify_all();
  }
  bool done() const { return done_.load(std::memory_order_acquire) != 0; }
  void wait() const { done_.wait(0, std::memory_order_acquire); }

 private:
  std::atomic<u32> done_{0};
};
using Fence = std::shared_ptr<Completion>;

// Something a stream executes or a graph node holds. Immutable once submitted.
class Operation {
 public:
  virtual ~Operation() = default;
  virtual CUgraphNodeType type() const = 0;
  // Runs on the executor's thread. Anything but CUDA_SUCCESS faults the context.
  virtual CUresult run(Context& context) const = 0;
  // True for what must happen even in a faulted context: releasing memory, callbacks that report the fault.
  virtual bool runs_after_fault() const { return false; }
};
using OperationPtr = std::shared_ptr<const Operation>;

struct Work {
  std::vector<Fence> after;
  OperationPtr operation;
  Fence done;
};

struct Capture;
struct GraphNode;

struct Stream : std::enable_shared_from_this<Stream> {
  CUstream handle = nullptr;
  std::shared_ptr<Context> context;
  u32 flags = CU_STREAM_DEFAULT;
  int priority = 0;
  u64 id = 0;
  bool legacy = false;
  bool implicit = false;  // the legacy or a per-thread stream: never destroyed by the program
  std::map<CUstreamAttrID, CUstreamAttrValue> attributes;  // guarded by Context::submit_mutex

  bool blocking() const { return !legacy && (flags & CU_STREAM_NON_BLOCKING) == 0; }

  // Queues an operation behind everything before it and returns its fence.
  Fence submit(OperationPtr operation, std::vector<Fence> after = {});
  // The same, and waits; runs it in the calling thread when nothing is in the way. Returns the context's
  // state.
  CUresult submit_and_wait(OperationPtr operation);
  // For what takes no time: done when this returns, unless something is before it.
  void submit_quick(OperationPtr operation);
  // The fence of the newest work; null when there never was any.
  Fence newest();
  CUresult synchronize();
  bool idle();
  // Lets the executor end after what is queued. The handle is gone already.
  void close();

  // Capture state, guarded by capture_mutex() (capture.hpp); `capturing` mirrors it for a quick look.
  std::shared_ptr<Capture> capture;
  std::vector<std::shared_ptr<GraphNode>> frontier;
  std::atomic<bool> capturing{false};

 private:
  Work prepare(OperationPtr operation, std::vector<Fence> after);  // submit_mutex held
  void enqueue(Work work);
  Fence run_or_submit(OperationPtr operation, bool at_once);
  void execute(Work& work);
  void executor_loop();
  std::vector<Fence> outstanding();

  Fence last_;  // guarded by Context::submit_mutex
  std::mutex queue_mutex_;
  std::condition_variable queue_changed_;
  std::deque<Work> queue_;
  bool busy_ = false;     // somebody executes this stream's oldest work
  bool started_ = false;  // the executor thread exists
  bool closing_ = false;
};

Registry<Stream, CUstream>& streams();

// Makes a stream in a context; not yet in the registry.
std::shared_ptr<Stream> make_stream(const std::shared_ptr<Context>& context, u32 flags, int priority);
// Resolves 0, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD and real handles. Error when the handle means nothing or
// the stream's context has faulted.
std::shared_ptr<Stream> resolve_stream(CUstream handle);
// The same without the check for a fault.
std::shared_ptr<Stream> resolve_stream_any(CUstream handle);

// Ends all streams of a context but the legacy one.
void close_streams(Context& context);

// Gives an operation to a stream, or to the graph that the stream is being captured into (capture.cpp).
void put_on_stream(const std::shared_ptr<Stream>& stream, OperationPtr operation);
// The same, and waits. Error STREAM_CAPTURE_UNSUPPORTED, which also ends the capture, while capturing.
void run_on_stream(const std::shared_ptr<Stream>& stream, OperationPtr operation);

}  // namespace gpupool::softgpu
