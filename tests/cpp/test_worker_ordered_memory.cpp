// Memory that graphs allocate behind long work: a request that fits once that work is done is not refused.
#include <doctest/doctest.h>

#include <memory>

#include "hostd/worker/ordered_memory.hpp"

namespace gpupool::worker {
namespace {

constexpr u64 kMib = 1u << 20;

// A driver with one graph that allocates, and frees when its stream gets there.
struct Graphs {
  u64 node_bytes = 0;
  u64 used = 0;
  u64 used_when_done = 0;
  int waits = 0;
};
Graphs g_graphs;

class Session {
 public:
  explicit Session(u64 limit_bytes) {
    g_graphs = {};
    worker.devices = {0};
    quota->vgpu[0].memory_bytes.store(limit_bytes);
    worker.memory[0] = VgpuMemory(*quota, 0, *account, 0);
    DriverApi& driver = worker.driver;
    driver.cuCtxGetDevice = [](CUdevice* device) {
      *device = 0;
      return CUDA_SUCCESS;
    };
    driver.cuCtxGetCurrent = [](CUcontext* context) {
      *context = nullptr;
      return CUDA_SUCCESS;
    };
    driver.cuCtxSetCurrent = [](CUcontext) { return CUDA_SUCCESS; };
    driver.cuCtxSynchronize = [] {
      ++g_graphs.waits;
      g_graphs.used = g_graphs.used_when_done;
      return CUDA_SUCCESS;
    };
    driver.cuGraphGetNodes = [](CUgraph, CUgraphNode*, size_t* count) {
      *count = 1;
      return CUDA_SUCCESS;
    };
    driver.cuGraphNodeGetType = [](CUgraphNode, CUgraphNodeType* type) {
      *type = CU_GRAPH_NODE_TYPE_MEM_ALLOC;
      return CUDA_SUCCESS;
    };
    driver.cuGraphMemAllocNodeGetParams = [](CUgraphNode, CUDA_MEM_ALLOC_NODE_PARAMS* params) {
      params->bytesize = g_graphs.node_bytes;
      return CUDA_SUCCESS;
    };
    driver.cuGraphInstantiateWithParams = [](CUgraphExec* exec, CUgraph, CUDA_GRAPH_INSTANTIATE_PARAMS*) {
      *exec = reinterpret_cast<CUgraphExec>(u64{0x20});
      return CUDA_SUCCESS;
    };
    // Nothing of it is idle: what the pool holds is in use until the work is done.
    driver.cuDeviceGetGraphMemAttribute = [](CUdevice, CUgraphMem_attribute, void* value) {
      *static_cast<cuuint64_t*>(value) = g_graphs.used;
      return CUDA_SUCCESS;
    };
    driver.cuDeviceGraphMemTrim = [](CUdevice) { return CUDA_SUCCESS; };
    worker.contexts.put(wire::Handle::make(wire::HandleKind::context, 0, 1),
                        reinterpret_cast<CUcontext>(u64{0x10}));
    ledger.open(worker);
    ledger.make_room = [this](u32 device) { return ordered.make_room(device); };
  }

  // A graph with this much in one node, launched behind work that is not done.
  void launch(u64 bytes) {
    g_graphs.node_bytes = bytes;
    CUgraphExec exec = nullptr;
    CUDA_GRAPH_INSTANTIATE_PARAMS params{};
    ordered.graphs_allocate();
    REQUIRE(ordered.instantiate(&exec, reinterpret_cast<CUgraph>(u64{0x30}), &params) == CUDA_SUCCESS);
    const auto run = [](CUgraphExec, CUstream) {
      g_graphs.used = g_graphs.node_bytes;
      return CUDA_SUCCESS;
    };
    REQUIRE(ordered.run_graph(exec, nullptr, run) == CUDA_SUCCESS);
    REQUIRE(worker.memory[0].own_bytes() == bytes);
  }

  Worker worker;
  MemoryLedger ledger;
  OrderedMemory ordered{ledger};

 private:
  std::unique_ptr<pages::QuotaPage> quota = std::make_unique<pages::QuotaPage>();
  std::unique_ptr<pages::AccountPage> account = std::make_unique<pages::AccountPage>();
};

}  // namespace

TEST_CASE("memory that a graph frees behind long work makes room for others") {
  Session session(100 * kMib);
  session.launch(80 * kMib);
  CHECK(session.ledger.charge(0, 60 * kMib));
  CHECK(g_graphs.waits == 1);
  CHECK(session.worker.memory[0].own_bytes() == 60 * kMib);
}

TEST_CASE("memory that a graph leaves to the program makes no room") {
  Session session(100 * kMib);
  session.launch(80 * kMib);
  g_graphs.used_when_done = 80 * kMib;
  CHECK_FALSE(session.ledger.charge(0, 60 * kMib));
  CHECK(session.worker.memory[0].own_bytes() == 80 * kMib);
  CHECK(session.ledger.charge(0, 20 * kMib));
}

TEST_CASE("where nothing can be given up nobody waits") {
  Session session(100 * kMib);
  REQUIRE(session.ledger.charge(0, 80 * kMib));
  CHECK_FALSE(session.ledger.charge(0, 60 * kMib));
  CHECK(g_graphs.waits == 0);
}

}  // namespace gpupool::worker
