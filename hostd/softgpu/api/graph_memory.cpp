// Nodes that allocate and free. The memory is there from the moment the node is added; what launches do is
// counted when they are submitted, so that a launch that would allocate what is allocated is refused.
#include "hostd/softgpu/api/graph_memory.hpp"

#include <algorithm>
#include <array>

#include "hostd/softgpu/api/graph_nodes.hpp"
#include "hostd/softgpu/api/memory.hpp"

namespace gpupool::softgpu {

namespace {

struct Account {
  u64 used = 0, used_high = 0, reserved = 0, reserved_high = 0;
};

struct Accounts {
  std::mutex mutex;
  std::map<u64, std::weak_ptr<GraphMemory>> by_address;
  std::array<Account, kMaxDevices> devices;
};

Accounts& accounts() {
  static auto* all = new Accounts;
  return *all;
}

// A launch makes the graphs' pool grow, in steps; trimming makes it smaller. An H100 says more than was asked
// for, for what is in use as well.
void count(const GraphMemory& memory, i64 used) {
  Accounts& all = accounts();
  const std::lock_guard lock(all.mutex);
  Account& account = all.devices[static_cast<u32>(memory.device)];
  account.used += static_cast<u64>(used);
  account.reserved = std::max(account.reserved, round_up(account.used, kPoolStep));
  account.used_high = std::max(account.used_high, account.used);
  account.reserved_high = std::max(account.reserved_high, account.reserved);
}

i64 charged(const GraphMemory& memory) {
  return static_cast<i64>(round_up(memory.bytes, kSmallAlignment));
}

// graph_mutex() is held.
void set_taken(GraphMemory& memory, bool taken) {
  if (memory.taken == taken) return;
  memory.taken = taken;
  count(memory, taken ? charged(memory) : -charged(memory));
}

cuuint64_t& value_of(Account& account, CUgraphMem_attribute attribute) {
  switch (attribute) {
    case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT:
      return account.used;
    case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH:
      return account.used_high;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT:
      return account.reserved;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH:
      return account.reserved_high;
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

}  // namespace

GraphMemory::~GraphMemory() {
  if (address == 0) return;
  if (taken) count(*this, -charged(*this));
  {
    const std::lock_guard lock(accounts().mutex);
    accounts().by_address.erase(address);
  }
  if (const auto allocation = memory_table().take(address)) release_device(*allocation);
}

std::shared_ptr<AllocationOperation> make_allocation(const CUDA_MEM_ALLOC_NODE_PARAMS& parameters) {
  const CUmemPoolProps& properties = parameters.poolProps;
  require(parameters.bytesize != 0 && properties.allocType == CU_MEM_ALLOCATION_TYPE_PINNED &&
          properties.location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
          (parameters.accessDescCount == 0 || parameters.accessDescs != nullptr));
  require(properties.handleTypes == CU_MEM_HANDLE_TYPE_NONE, CUDA_ERROR_NOT_SUPPORTED);
  const auto context = current_context();
  require(context->device == &device_of(properties.location.id), CUDA_ERROR_NOT_SUPPORTED);
  auto memory = std::make_shared<GraphMemory>();
  memory->bytes = parameters.bytesize;
  memory->device = properties.location.id;
  memory->properties = properties;
  memory->access.assign(parameters.accessDescs, parameters.accessDescs + parameters.accessDescCount);
  memory->address = allocate_device(*context, parameters.bytesize, MemoryKind::graph).base;
  {
    const std::lock_guard lock(accounts().mutex);
    accounts().by_address[memory->address] = memory;
  }
  auto operation = std::make_shared<AllocationOperation>();
  operation->memory = std::move(memory);
  return operation;
}

std::shared_ptr<GraphFreeOperation> make_free(u64 address) {
  auto operation = std::make_shared<GraphFreeOperation>();
  operation->address = address;
  operation->memory = find_graph_memory(address);
  require(operation->memory != nullptr);  // cuda.h: what no node has allocated
  return operation;
}

std::shared_ptr<GraphMemory> find_graph_memory(u64 address) {
  const std::lock_guard lock(accounts().mutex);
  const auto found = accounts().by_address.find(address);
  return found == accounts().by_address.end() ? nullptr : found->second.lock();
}

CUresult AllocationOperation::run(Context&) const {
  return CUDA_SUCCESS;
}

CUresult GraphFreeOperation::run(Context&) const {
  return CUDA_SUCCESS;
}

void note_memory_of_launch(const std::vector<GraphStep>& steps, bool free_first) {
  for (const GraphStep& step : steps)
    if (const auto* allocation = dynamic_cast<const AllocationOperation*>(step.operation.get()))
      require(free_first || !allocation->memory->taken);
  for (const GraphStep& step : steps) {
    if (const auto* allocation = dynamic_cast<const AllocationOperation*>(step.operation.get()))
      set_taken(*allocation->memory, true);
    if (const auto* free = dynamic_cast<const GraphFreeOperation*>(step.operation.get()); free)
      set_taken(*free->memory, false);
  }
}

bool free_graph_memory(u64 address) {
  const auto memory = find_graph_memory(address);
  if (memory == nullptr) return false;
  const std::lock_guard lock(graph_mutex());
  require(memory->taken);
  set_taken(*memory, false);
  return true;
}

bool has_memory_nodes(const Graph& graph) {
  return std::ranges::any_of(graph.nodes, [](const auto& node) {
    const CUgraphNodeType type = node->operation->type();
    return type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || type == CU_GRAPH_NODE_TYPE_MEM_FREE;
  });
}

GPUPOOL_CUDA CUresult cuGraphAddMemAllocNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                             size_t count, CUDA_MEM_ALLOC_NODE_PARAMS* p) {
  return add_node_of(out, graph, dependencies, count, [&] {
    auto operation = make_allocation(*non_null(p));
    p->dptr = operation->memory->address;
    return operation;
  });
}

GPUPOOL_CUDA CUresult cuGraphAddMemFreeNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* dependencies,
                                            size_t count, CUdeviceptr address) {
  return add_node_of(out, graph, dependencies, count, [&] { return make_free(address); });
}

GPUPOOL_CUDA CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS* out) {
  return call([&] {
    require(out != nullptr);
    const auto operation = operation_of<AllocationOperation>(node);
    const GraphMemory& memory = *operation->memory;
    // The array is the node's.
    *out = {memory.properties, memory.access.empty() ? nullptr : memory.access.data(), memory.access.size(),
            memory.bytes, memory.address};
  });
}

GPUPOOL_CUDA CUresult cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr* out) {
  return call([&] {
    require(out != nullptr);
    *out = operation_of<GraphFreeOperation>(node)->address;
  });
}

// Of the device's memory nothing comes back before the last graph that has the node is gone.
GPUPOOL_CUDA CUresult cuDeviceGraphMemTrim(CUdevice device) {
  return call([&] {
    const auto ordinal = static_cast<u32>(device_of(device).ordinal);
    const std::lock_guard lock(accounts().mutex);
    Account& account = accounts().devices[ordinal];
    account.reserved = round_up(account.used, kPoolStep);
  });
}

GPUPOOL_CUDA CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute,
                                                   void* value) {
  return call([&] {
    require(value != nullptr);
    const int ordinal = device_of(device).ordinal;
    const std::lock_guard lock(accounts().mutex);
    *static_cast<cuuint64_t*>(value) =
        round_up(value_of(accounts().devices[static_cast<u32>(ordinal)], attribute), kPoolStep);
  });
}

GPUPOOL_CUDA CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute,
                                                   void* value) {
  return call([&] {
    require(value != nullptr && *static_cast<const cuuint64_t*>(value) == 0);
    const int ordinal = device_of(device).ordinal;
    const std::lock_guard lock(accounts().mutex);
    Account& account = accounts().devices[static_cast<u32>(ordinal)];
    if (attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
      account.used_high = account.used;
    else if (attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
      account.reserved_high = account.reserved;
    else
      fail(CUDA_ERROR_INVALID_VALUE);
  });
}

}  // namespace gpupool::softgpu
