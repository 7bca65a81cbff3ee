// Parameters of nodes, from the wire to what the driver takes. Each read() consumes its part of the message;
// the result lives as long as the object.
#pragma once

#include <vector>

#include "hostd/worker/worker.hpp"
#include "wire/cpp/copy_message.hpp"
#include "wire/cpp/graph_message.hpp"
#include "wire/cpp/launch_message.hpp"

namespace gpupool::worker {

// The context with that handle index; index 0 is the slot's own.
CUcontext find_context(Worker& worker, const Request& request, u32 index);

struct NodeOf {
  CUgraphNode node = nullptr;
  CUgraphExec exec = nullptr;
};

// A node, behind an executable graph for the functions that change one.
CUresult read_node(Worker& worker, Request& request, NodeOf& of, bool in_exec);

struct KernelNode {
  CUDA_KERNEL_NODE_PARAMS_v2 params{};

  KernelNode() = default;
  KernelNode(const KernelNode&) = delete;  // `params` points into it
  KernelNode& operator=(const KernelNode&) = delete;
  CUresult read(Worker& worker, Request& request);

 private:
  // As aligned as any parameter can ask for: tensor maps want 64 bytes.
  alignas(128) u8 buffer_[wire::kMaxParameterBytes];
  size_t buffer_bytes_ = 0;
  void* extra_[5] = {};
};

struct CopyNode {
  CUDA_MEMCPY3D params{};
  CUcontext context = nullptr;
  CUresult read(Worker& worker, Request& request);
};

struct MemsetNode {
  CUDA_MEMSET_NODE_PARAMS params{};
  CUcontext context = nullptr;
  CUresult read(Worker& worker, Request& request);
};

}  // namespace gpupool::worker
