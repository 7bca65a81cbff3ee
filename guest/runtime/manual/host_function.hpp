// Functions of the program that run when the GPU reaches them: cuLaunchHostFunc, cuStreamAddCallback, host
// nodes of graphs, destructors of user objects.
//
// The worker gives the driver a function of its own. When the driver calls it, it stores a request, (sequence
// << 32 | id), into completion word 0, which belongs to no stream, and waits until Control::host_released
// reaches the sequence. A thread of ours, started at the first use, looks at word 0 while a host function may
// be outstanding, runs what the id names and releases it. So order, capture and graphs are the driver's own.
#pragma once

#include <cuda.h>

#include <functional>
#include <memory>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

// Something of the program's that the worker knows by `id` for as long as this object lives.
struct HostCall {
  u32 id = 0;
  CUhostFn function = nullptr;          // one of the two is set
  CUstreamCallback callback = nullptr;  // cuStreamAddCallback
  CUstream stream = nullptr;            // as the program named it, for `callback`
  void* data = nullptr;
  bool ran = false;  // of a cuStreamAddCallback: it is called even when the session fails
  ~HostCall();
};

std::shared_ptr<HostCall> make_host_call(CUhostFn function, void* data);
// The call of that id, or null.
std::shared_ptr<HostCall> find_host_call(u32 id);

// Serves requests until word `word` has reached `value`, keeping `calls` alive that long.
void expect_host_calls(u32 word, u64 value, std::vector<std::shared_ptr<HostCall>> calls);
// Runs `job` on the same thread once word `word` has reached `value` (word 0: at once), or the session has
// failed.
void run_when(u32 word, u64 value, std::function<void()> job);
// True in a host function: the program must not call CUDA there.
bool in_host_function();

}  // namespace gpupool::guest
