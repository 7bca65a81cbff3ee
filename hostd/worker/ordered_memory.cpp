#include "hostd/worker/ordered_memory.hpp"

#include <algorithm>

#include "hostd/worker/manual/context.hpp"
#include "hostd/worker/manual/graph.hpp"
#include "hostd/worker/manual/memory.hpp"

namespace gpupool::worker {
namespace {

// Pools of driver 580 grow in steps of 32 MiB (H100).
constexpr u64 kRounding = 32u << 20;

}  // namespace

OrderedMemory& ordered_memory() {
  static auto& one = *new OrderedMemory(memory_ledger());
  return one;
}

u32 OrderedMemory::device_of(CUmemoryPool handle) const {
  const DriverApi& driver = ledger_.driver();
  for (const CUdevice device : ledger_.worker().devices) {
    CUmemoryPool standard = nullptr;
    if (driver.cuDeviceGetDefaultMemPool(&standard, device) == CUDA_SUCCESS && standard == handle)
      return ledger_.index_of(device);
  }
  return ledger_.current_index();
}

OrderedMemory::Pool& OrderedMemory::pool_of(CUmemoryPool handle) {
  const auto found = pools_.find(handle);
  if (found != pools_.end()) return found->second;
  return pools_[handle] = Pool{device_of(handle), next_serial_++, 0, 0};
}

void OrderedMemory::pool_made(CUmemoryPool pool, CUdevice device) {
  pools_[pool] = Pool{ledger_.index_of(device), next_serial_++, 0, 0};
}

void OrderedMemory::look_at(CUmemoryPool handle, Pool& pool) {
  cuuint64_t reserved = 0;
  const CUresult result =
      ledger_.driver().cuMemPoolGetAttribute(handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved);
  pool.reserved = result == CUDA_SUCCESS ? reserved : pool.used;
}

void OrderedMemory::look_at_graphs(u32 device) {
  const DriverApi& driver = ledger_.driver();
  if (!graphs_ || driver.cuDeviceGetGraphMemAttribute == nullptr) return;
  const CUdevice of = ledger_.worker().devices[device];
  cuuint64_t used = 0;
  cuuint64_t reserved = 0;
  if (driver.cuDeviceGetGraphMemAttribute(of, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used) != CUDA_SUCCESS ||
      driver.cuDeviceGetGraphMemAttribute(of, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &reserved) !=
          CUDA_SUCCESS)
    return;
  Device& all = devices_[device];
  if (used == 0) all.graphs_gone = 0;
  // The driver says what it holds for graphs in its own units: what was not asked for is idle.
  all.graph_used = std::min<u64>(used, all.graphs_ask + all.graphs_gone);
  all.graph_reserved = std::max(used, reserved);
}

// `to_graphs`: if graphs allocated so much more now, of what is idle in their pool as far as that goes.
u64 OrderedMemory::wanted(u32 device, u64 to_graphs) const {
  const Device& all = devices_[device];
  const u64 used = all.in_use() + to_graphs;
  if (!limited(device)) return used;
  const u64 graph_idle = all.graph_reserved - all.graph_used;
  u64 idle = all.lingering + graph_idle - std::min(graph_idle, to_graphs);
  for (const auto& [handle, pool] : pools_)
    if (pool.device == device) idle += pool.idle();
  return used + (idle > kRounding ? idle - kRounding : 0);
}

bool OrderedMemory::grow(u32 device, u64 wanted) {
  Device& all = devices_[device];
  if (wanted <= all.charged) return true;
  if (!ledger_.try_charge(device, wanted - all.charged)) return false;
  all.charged = wanted;
  return true;
}

bool OrderedMemory::settle(u32 device, bool refusing) {
  Device& all = devices_[device];
  const u64 now = wanted(device);
  if (now < all.charged) {
    ledger_.release(device, all.charged - now);
  } else if (now > all.charged && !ledger_.try_charge(device, now - all.charged)) {
    if (refusing) return false;
    ledger_.charge_anyway(device, now - all.charged);
  }
  all.charged = now;
  idle_ = std::ranges::any_of(devices_, [](const Device& one) { return one.charged > one.in_use(); });
  return true;
}

CUresult OrderedMemory::allocate(CUdeviceptr* address, u64 bytes, CUmemoryPool pool, CUstream stream) {
  const DriverApi& driver = ledger_.driver();
  const auto ask = [&] {
    return pool == nullptr ? driver.cuMemAllocAsync(address, bytes, stream)
                           : driver.cuMemAllocFromPoolAsync(address, bytes, pool, stream);
  };
  CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
  if (driver.cuStreamIsCapturing(stream, &capturing) == CUDA_SUCCESS &&
      capturing != CU_STREAM_CAPTURE_STATUS_NONE) {
    graphs_allocate();
    return ask();
  }
  CUmemoryPool from = pool;
  if (from == nullptr) {
    CUdevice device = 0;
    CUresult found = driver.cuCtxGetDevice(&device);
    if (found == CUDA_SUCCESS) found = driver.cuDeviceGetMemPool(&from, device);
    if (found != CUDA_SUCCESS) return found;
  }
  const u64 size = in_granules(bytes);
  const u32 device = pool_of(from).device;
  Device& all = devices_[device];
  const auto fits = [&] {
    u64 sum = 0;
    return !__builtin_add_overflow(all.in_use(), size, &sum) && grow(device, sum);
  };
  if (!fits() && !(make_room(device) && fits())) return CUDA_ERROR_OUT_OF_MEMORY;
  CUresult result = ask();
  Pool& mine = pool_of(from);
  if (result == CUDA_SUCCESS) {
    freed(*address);  // what the driver freed by itself and gives out again
    blocks_[*address] = Block{size, device, from, mine.serial};
    all.used += size;
    mine.used += size;
  }
  if (limited(device)) look_at(from, mine);
  if (settle(device, result == CUDA_SUCCESS) || (make_room(device) && settle(device, true))) return result;
  // The pool has grown beyond what the vGPU has room for.
  if (driver.cuMemFreeAsync(*address, stream) == CUDA_SUCCESS) freed(*address);
  make_room(device);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

bool OrderedMemory::freed(u64 address) {
  const auto found = blocks_.find(address);
  if (found == blocks_.end()) return false;
  const Block block = found->second;
  blocks_.erase(found);
  devices_[block.device].used -= block.bytes;
  const auto pool = pools_.find(block.pool);
  if (pool != pools_.end() && pool->second.serial == block.serial) {
    pool->second.used -= block.bytes;
    if (limited(block.device)) look_at(pool->first, pool->second);
  }
  settle(block.device);
  return true;
}

void OrderedMemory::lingers(u64 bytes) {
  const u32 device = ledger_.current_index();
  if (!limited(device)) return;
  devices_[device].lingering += bytes;
  settle(device);
}

void OrderedMemory::stream_ends(CUstream stream) {
  if (!pools_.empty() || devices_[ledger_.current_index()].lingering != 0)
    streams_gone_ = streams_gone_ || ledger_.driver().cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
}

void OrderedMemory::pool_ends(CUmemoryPool handle) {
  const auto found = pools_.find(handle);
  if (found == pools_.end() || !limited(found->second.device)) return;
  notice_frees(ledger_.worker(), kFreePatienceNs);
  ledger_.driver().cuMemPoolTrimTo(handle, 0);
  look_at(handle, found->second);
}

// What is idle in it goes at once; what streams have yet to free is there until they do.
void OrderedMemory::pool_ended(CUmemoryPool handle) {
  const auto found = pools_.find(handle);
  if (found == pools_.end()) return;
  const u32 device = found->second.device;
  devices_[device].lingering += found->second.idle();
  pools_.erase(found);
  settle(device);
}

void OrderedMemory::look_at_all(u32 device) {
  for (auto& [handle, pool] : pools_)
    if (pool.device == device) look_at(handle, pool);
  look_at_graphs(device);
}

void OrderedMemory::refresh(u32 device, u64 patience_ns) {
  Device& all = devices_[device];
  const bool something =
      limited(device) ? wanted(device) != all.in_use() || all.charged != all.in_use() : !pools_.empty();
  if (something && notice_frees(ledger_.worker(), patience_ns) && !streams_gone_) all.lingering = 0;
  if (!limited(device)) return;
  look_at_all(device);
  for (auto& [handle, pool] : pools_)
    if (pool.device == device && pool.idle() != 0) give_up_unwanted(handle, pool);
  settle(device);
}

// What the driver does when a program waits: it gives up what is above the release threshold. It never hears
// of our clients' waits.
void OrderedMemory::give_up_unwanted(CUmemoryPool handle, Pool& pool) {
  const DriverApi& driver = ledger_.driver();
  cuuint64_t threshold = 0;
  if (driver.cuMemPoolGetAttribute(handle, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold) != CUDA_SUCCESS ||
      threshold >= pool.reserved || any_capturing(ledger_.worker()))
    return;
  if (driver.cuMemPoolTrimTo(handle, threshold) == CUDA_SUCCESS) look_at(handle, pool);
}

// Of every context on the device: any of them may have something to free.
void OrderedMemory::wait_for_all(u32 device) {
  const DriverApi& driver = ledger_.driver();
  const KeepCurrent keep(driver);
  bool all = true;
  ledger_.worker().contexts.each([&](wire::Handle, CUcontext context) {
    if (driver.cuCtxSetCurrent(context) != CUDA_SUCCESS || ledger_.current_index() != device) return;
    all = driver.cuCtxSynchronize() == CUDA_SUCCESS && all;
  });
  if (!all) return;
  devices_[device].lingering = 0;
  if (ledger_.worker().devices.size() == 1) streams_gone_ = false;
}

bool OrderedMemory::make_room(u32 device) {
  Device& all = devices_[device];
  if (!limited(device)) return false;
  // A pool that has just grown is not charged yet for what is idle in the others.
  const u64 before = std::max(all.charged, wanted(device));
  // What graphs have in use may be free once the work before it is done: their frees, too, wait in streams.
  if ((before == all.in_use() && all.graph_used == 0) || any_capturing(ledger_.worker())) return false;
  const DriverApi& driver = ledger_.driver();
  wait_for_all(device);
  for (const auto& [handle, pool] : pools_)
    if (pool.device == device) driver.cuMemPoolTrimTo(handle, 0);
  if (graphs_ && driver.cuDeviceGraphMemTrim != nullptr)
    driver.cuDeviceGraphMemTrim(ledger_.worker().devices[device]);
  look_at_all(device);
  settle(device, true);  // what still does not fit is refused by whoever asked for it
  return std::max(all.charged, wanted(device)) < before;
}

// Of all nodes that allocate, as if they did at the same time; the graphs inside it as well.
u64 OrderedMemory::bytes_of(CUgraph graph) const {
  Worker& worker = ledger_.worker();
  const DriverApi& driver = ledger_.driver();
  std::vector<CUgraphNode> nodes;
  if (nodes_of(worker, graph, nodes) != CUDA_SUCCESS) return 0;
  u64 sum = 0;
  for (const CUgraphNode node : nodes) {
    CUgraphNodeType type{};
    if (driver.cuGraphNodeGetType(node, &type) != CUDA_SUCCESS) continue;
    CUDA_MEM_ALLOC_NODE_PARAMS params{};
    if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC &&
        driver.cuGraphMemAllocNodeGetParams(node, &params) == CUDA_SUCCESS)
      sum += in_granules(params.bytesize);
    for (CUgraph inner : graphs_inside(worker, node)) sum += bytes_of(inner);
  }
  return sum;
}

CUresult OrderedMemory::instantiate(CUgraphExec* exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  const DriverApi& driver = ledger_.driver();
  const u64 bytes = graphs_ ? bytes_of(graph) : 0;
  if (bytes == 0) [[likely]]
    return driver.cuGraphInstantiateWithParams(exec, graph, params);
  const u32 device = ledger_.current_index();
  if (!ledger_.charge(device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = driver.cuGraphInstantiateWithParams(exec, graph, params);
  ledger_.release(device, bytes);
  if (result == CUDA_SUCCESS) {
    const bool frees_first = (params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) != 0;
    graph_ended(*exec);  // that handle's graph before, which ended with its context
    Exec& made = execs_[*exec] = Exec{bytes, device, frees_first, false};
    if ((params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0) has_run(made);
  }
  settle_graphs();
  return result;
}

CUresult OrderedMemory::run_counted(CUgraphExec handle, CUstream stream, Run run) {
  const auto found = execs_.find(handle);
  if (found == execs_.end()) return run(handle, stream);
  Exec& exec = found->second;
  const Device& all = devices_[exec.device];
  const u64 to_graphs = exec.launched && exec.frees_first ? 0 : exec.bytes;
  u64 more = 0;
  const auto fits = [&] {
    const u64 then = wanted(exec.device, to_graphs);
    more = then > all.charged ? then - all.charged : 0;
    return ledger_.try_charge(exec.device, more);
  };
  if (!fits() && !(make_room(exec.device) && fits())) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = run(handle, stream);
  ledger_.release(exec.device, more);
  if (result == CUDA_SUCCESS) has_run(exec);
  look_at_graphs(exec.device);
  settle(exec.device);
  return result;
}

void OrderedMemory::has_run(Exec& exec) {
  if (exec.launched) return;
  exec.launched = true;
  devices_[exec.device].graphs_ask += exec.bytes;
}

void OrderedMemory::graph_ended(CUgraphExec handle) {
  const auto found = execs_.find(handle);
  if (found == execs_.end()) return;
  const Exec exec = found->second;
  execs_.erase(found);
  if (exec.launched) {
    devices_[exec.device].graphs_ask -= exec.bytes;
    devices_[exec.device].graphs_gone += exec.bytes;
  }
  settle_graphs();
}

void OrderedMemory::settle_graphs() {
  if (!graphs_) return;
  for (u32 device = 0; device < ledger_.worker().devices.size() && device < wire::kMaxDevices; ++device) {
    look_at_graphs(device);
    settle(device);
  }
}

}  // namespace gpupool::worker
