// Memory that the driver hands out of pools: stream-ordered memory and what graphs allocate. What programs
// ask for counts as any memory; but a pool holds more than that, and holds it on after a free. So what is
// idle in the pools of a session counts too, beyond the 32 MiB by which the driver rounds a pool up by
// itself (kRounding), and is given up before a request is refused. docs/memory.md tells it to users.
//
// Where a vGPU has no limit nothing is asked about pools: what programs ask for is all that counts.
// Only the dispatcher's thread comes here.
#pragma once

#include <array>
#include <unordered_map>
#include <vector>

#include "hostd/worker/memory_ledger.hpp"

namespace gpupool::worker {

class OrderedMemory {
 public:
  explicit OrderedMemory(MemoryLedger& ledger) : ledger_(ledger) {}

  // Stream-ordered memory; without a pool from the current one of the current context's device.
  CUresult allocate(CUdeviceptr* address, u64 bytes, CUmemoryPool pool, CUstream stream);
  // A free has been issued. False when the address is none of ours.
  bool freed(u64 address);
  // Other memory is freed in a stream's order: it is there until the stream gets that far.
  void lingers(u64 bytes);
  // Before the driver destroys it.
  void stream_ends(CUstream stream);

  void pool_made(CUmemoryPool pool, CUdevice device);
  // Before the driver destroys it, and when it has.
  void pool_ends(CUmemoryPool pool);
  void pool_ended(CUmemoryPool pool);

  // A graph has a node that allocates: from now on graphs are looked at.
  void graphs_allocate() { graphs_ = true; }
  CUresult instantiate(CUgraphExec* exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* params);
  // Launches or uploads an executable graph, through `run`.
  using Run = CUresult (*)(CUgraphExec exec, CUstream stream);
  CUresult run_graph(CUgraphExec exec, CUstream stream, Run run) {
    if (execs_.empty()) [[likely]]
      return run(exec, stream);
    return run_counted(exec, stream, run);
  }
  void graph_ended(CUgraphExec exec);
  // Something was freed that may be a graph's, or trimmed.
  void settle_graphs();

  // Looks at everything anew, after giving the streams so long to get to the frees that were just issued.
  void refresh(u32 device, u64 patience_ns = 0);
  // The same where something that counts was idle at the last look.
  void look_again() {
    if (idle_) [[unlikely]]
      for (u32 device = 0; device < ledger_.worker().devices.size() && device < wire::kMaxDevices; ++device)
        refresh(device);
  }
  // Gives up what is idle, or is so when all work is done, for which it waits; false when that made no room.
  bool make_room(u32 device);

 private:
  struct Pool {
    u32 device = 0;
    u64 serial = 0;  // the driver may give the same handle to a later pool
    u64 used = 0;
    u64 reserved = 0;  // at the last look
    [[nodiscard]] u64 idle() const { return reserved > used ? reserved - used : 0; }
  };
  struct Block {
    u64 bytes = 0;
    u32 device = 0;
    CUmemoryPool pool = nullptr;
    u64 serial = 0;
  };
  struct Exec {
    u64 bytes = 0;  // of all its allocations
    u32 device = 0;
    bool frees_first = false;
    bool launched = false;
  };
  struct Device {
    u64 used = 0;  // of pools
    u64 charged = 0;
    u64 lingering = 0;
    u64 graph_used = 0;  // no more than the graphs that were launched allocate
    u64 graph_reserved = 0;
    u64 graphs_ask = 0;   // all allocations of the executable graphs that were launched
    u64 graphs_gone = 0;  // of those that were destroyed since: some may not be freed yet
    [[nodiscard]] u64 in_use() const { return used + graph_used; }
  };

  Pool& pool_of(CUmemoryPool handle);
  u32 device_of(CUmemoryPool handle) const;
  [[nodiscard]] bool limited(u32 device) const { return ledger_.vgpu(device).limit_bytes() != 0; }
  // So much is charged for at least; false when that does not fit.
  bool grow(u32 device, u64 wanted);
  void look_at(CUmemoryPool handle, Pool& pool);
  void look_at_graphs(u32 device);
  void look_at_all(u32 device);
  void give_up_unwanted(CUmemoryPool handle, Pool& pool);
  [[nodiscard]] u64 wanted(u32 device, u64 to_graphs = 0) const;
  // Charges for what there is now. What does not fit is charged anyway, or (`refusing`) makes it false.
  bool settle(u32 device, bool refusing = false);
  [[nodiscard]] u64 bytes_of(CUgraph graph) const;
  CUresult run_counted(CUgraphExec exec, CUstream stream, Run run);
  void has_run(Exec& exec);
  void wait_for_all(u32 device);

  MemoryLedger& ledger_;
  std::unordered_map<CUmemoryPool, Pool> pools_;
  std::unordered_map<u64, Block> blocks_;  // by address
  std::unordered_map<CUgraphExec, Exec> execs_;
  std::array<Device, wire::kMaxDevices> devices_{};
  u64 next_serial_ = 1;
  bool graphs_ = false;
  bool streams_gone_ = false;  // before they were done, which only the whole context tells now
  bool idle_ = false;          // on some device
};

OrderedMemory& ordered_memory();

}  // namespace gpupool::worker
