// Stands in for the worker in the test of generated code; the handle tables and the reader are the real ones.
#pragma once

#include <cuda.h>

#include <vector>

#include "driver_api.hpp"
#include "hostd/worker/handle_table.hpp"
#include "wire/cpp/reader.hpp"
#include "wire_functions.hpp"

namespace gpupool::worker {

struct Request {
  CUstream stream = nullptr;
  wire::Reader in{std::span<const u8>{}};
  wire::Writer* out = nullptr;
};

struct ModuleEntry {
  CUmodule module = nullptr;
};

class Worker {
 public:
  DriverApi driver{};
  std::vector<CUdevice> devices;
  HandleTable<ModuleEntry> modules{wire::HandleKind::module};
  HandleTable<CUgraph> graphs{wire::HandleKind::graph};
  HandleTable<CUgraphNode> graph_nodes{wire::HandleKind::graph_node};
};

using Handler = CUresult (*)(Worker&, Request&);

}  // namespace gpupool::worker
