// The driver of test_worker_graph.cpp.
#pragma once

#include <map>
#include <set>
#include <vector>

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// A driver with graphs of nodes, which remembers what it was called with.
struct Fake {
  std::map<CUgraph, std::set<CUgraphNode>> graphs;
  std::map<CUgraphNode, CUgraph> children;      // of child graph nodes
  std::map<CUgraphNode, CUgraph> conditionals;  // the body of each
  u64 next = 0x1000;
  CUDA_MEMCPY3D copy{};
  CUDA_KERNEL_NODE_PARAMS_v2 kernel{};
  std::vector<u8> parameters;
  CUDA_HOST_NODE_PARAMS host{};
  CUresult end_result = CUDA_SUCCESS;
  CUgraph captured = nullptr;
  bool capturing = false;
  int marks = 0;
  int destroyed_streams = 0;
};
inline Fake g_fake;

template <typename T>
T fresh() {
  return reinterpret_cast<T>(g_fake.next += 16);
}

inline CUgraph make_graph() {
  const auto graph = fresh<CUgraph>();
  g_fake.graphs[graph];
  return graph;
}

inline CUresult add_node(CUgraphNode* out, CUgraph graph) {
  *out = fresh<CUgraphNode>();
  g_fake.graphs.at(graph).insert(*out);
  return CUDA_SUCCESS;
}

// Fills in the functions that these tests reach.
inline void connect(DriverApi& driver) {
  driver.cuCtxSetCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  driver.cuGraphCreate = [](CUgraph* out, unsigned) {
    *out = make_graph();
    return CUDA_SUCCESS;
  };
  driver.cuGraphDestroy = [](CUgraph graph) {
    return g_fake.graphs.erase(graph) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  driver.cuGraphGetNodes = [](CUgraph graph, CUgraphNode* nodes, size_t* count) {
    const std::set<CUgraphNode>& all = g_fake.graphs.at(graph);
    if (nodes != nullptr) std::copy(all.begin(), all.end(), nodes);
    *count = all.size();
    return CUDA_SUCCESS;
  };
  driver.cuGraphNodeGetType = [](CUgraphNode node, CUgraphNodeType* type) {
    *type = g_fake.conditionals.contains(node) ? CU_GRAPH_NODE_TYPE_CONDITIONAL
            : g_fake.children.contains(node)   ? CU_GRAPH_NODE_TYPE_GRAPH
                                               : CU_GRAPH_NODE_TYPE_EMPTY;
    return CUDA_SUCCESS;
  };
  driver.cuGraphChildGraphNodeGetGraph = [](CUgraphNode node, CUgraph* out) {
    *out = g_fake.children.at(node);
    return CUDA_SUCCESS;
  };
  driver.cuGraphNodeFindInClone = [](CUgraphNode* out, CUgraphNode node, CUgraph clone) {
    *out = node;
    return g_fake.graphs.at(clone).contains(node) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  driver.cuGraphAddEmptyNode = [](CUgraphNode* out, CUgraph graph, const CUgraphNode*, size_t) {
    return add_node(out, graph);
  };
  driver.cuGraphAddChildGraphNode = [](CUgraphNode* out, CUgraph graph, const CUgraphNode*, size_t, CUgraph) {
    const CUresult result = add_node(out, graph);
    g_fake.children[*out] = make_graph();
    CUgraphNode inner = nullptr;
    add_node(&inner, g_fake.children[*out]);
    return result;
  };
  driver.cuGraphAddNode = [](CUgraphNode* out, CUgraph graph, const CUgraphNode*, size_t,
                             CUgraphNodeParams* params) {
    static CUgraph body;
    const CUresult result = add_node(out, graph);
    body = g_fake.conditionals[*out] = make_graph();
    params->conditional.phGraph_out = &body;
    return result;
  };
  driver.cuGraphAddMemcpyNode = [](CUgraphNode* out, CUgraph graph, const CUgraphNode*, size_t,
                                   const CUDA_MEMCPY3D* copy, CUcontext) {
    g_fake.copy = *copy;
    return add_node(out, graph);
  };
  driver.cuGraphAddKernelNode_v2 = [](CUgraphNode* out, CUgraph graph, const CUgraphNode*, size_t,
                                      const CUDA_KERNEL_NODE_PARAMS_v2* kernel) {
    g_fake.kernel = *kernel;
    const auto* bytes = static_cast<const u8*>(kernel->extra[1]);
    g_fake.parameters.assign(bytes, bytes + *static_cast<const size_t*>(kernel->extra[3]));
    return add_node(out, graph);
  };
  driver.cuGraphAddHostNode = [](CUgraphNode* out, CUgraph graph, const CUgraphNode*, size_t,
                                 const CUDA_HOST_NODE_PARAMS* host) {
    g_fake.host = *host;
    return add_node(out, graph);
  };
  driver.cuStreamWriteValue64_v2 = [](CUstream, CUdeviceptr address, cuuint64_t value, unsigned) {
    ++g_fake.marks;
    *reinterpret_cast<u64*>(address) = value;
    return CUDA_SUCCESS;
  };
  driver.cuStreamDestroy_v2 = [](CUstream) {
    ++g_fake.destroyed_streams;
    return CUDA_SUCCESS;
  };
  driver.cuStreamCreateWithPriority = [](CUstream* out, unsigned, int) {
    *out = fresh<CUstream>();
    return CUDA_SUCCESS;
  };
  driver.cuStreamBeginCapture_v2 = [](CUstream, CUstreamCaptureMode mode) {
    CHECK(mode == CU_STREAM_CAPTURE_MODE_RELAXED);
    g_fake.capturing = true;
    g_fake.captured = make_graph();
    return CUDA_SUCCESS;
  };
  driver.cuStreamGetCaptureInfo_v2 = [](CUstream, CUstreamCaptureStatus* status, cuuint64_t* id,
                                        CUgraph* graph, const CUgraphNode** nodes, size_t* count) {
    *status = g_fake.capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    if (id != nullptr) *id = 77;
    if (graph != nullptr) *graph = g_fake.captured;
    static CUgraphNode node;
    if (nodes != nullptr) {
      if (g_fake.graphs.at(g_fake.captured).empty()) add_node(&node, g_fake.captured);
      *nodes = &node;
    }
    if (count != nullptr) *count = 1;
    return CUDA_SUCCESS;
  };
  driver.cuStreamBeginCaptureToGraph = [](CUstream, CUgraph graph, const CUgraphNode*, const CUgraphEdgeData*,
                                          size_t, CUstreamCaptureMode) {
    g_fake.captured = graph;
    g_fake.capturing = true;
    return CUDA_SUCCESS;
  };
  driver.cuStreamEndCapture = [](CUstream, CUgraph* out) {
    g_fake.capturing = false;
    *out = g_fake.end_result == CUDA_SUCCESS ? g_fake.captured : nullptr;
    if (*out == nullptr) g_fake.graphs.erase(g_fake.captured);
    return g_fake.end_result;
  };
}

}  // namespace gpupool::worker
