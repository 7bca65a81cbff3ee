// The running machine: a launch, its blocks, their warps.
//
// One CPU thread runs all warps of a block, one after the other, each until it waits or has used its turn.
// Within a warp, lanes that stand at the same instruction form a group; the group at the lowest instruction
// runs first, which brings lanes together again after a branch. A group that has run long while others could
// run lets them go ahead, so that a lane spinning on a lock does not keep its neighbour from releasing it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hostd/softgpu/engine/ir.hpp"

namespace gpupool::softgpu::engine {

// Ends a launch. Thrown by handlers, caught by the CPU thread that runs the block.
struct LaunchFault {
  Fault fault = Fault::none;
  std::string detail;
  u32 lane = 0;
};

// Instructions a group runs while others could; less once it has done what loops that wait consist of.
inline constexpr u32 kPatience = 20'000;
inline constexpr u32 kSpinPatience = 200;

enum class GroupState : u8 {
  ready,
  lanes,    // waits for other lanes of the warp at a .sync instruction, which will be executed again
  barrier,  // has arrived at a barrier; `pc` is the barrier instruction
};

struct Group {
  u32 mask = 0;
  u32 pc = 0;
  GroupState state = GroupState::ready;
  bool deferred = false;  // has used its turn
  u8 barrier = 0;
  u32 patience = kPatience;  // instructions left of its turn
  u32 serial = 0;            // tells groups of a warp apart
};

struct Block;

struct Warp {
  Block* block = nullptr;
  u32 index = 0;
  u32 live = 0;  // lanes that have not exited
  u32 group_count = 0;
  u32 current = 0;  // group being run
  Group groups[kWarpLanes];
  u8* regs = nullptr;
  u8* local = nullptr;                        // [lane][local_bytes]
  std::vector<std::vector<u8>> saved_frames;  // per lane, made by the first recursive call

  u32 serials = 0;
  bool rows_filled = false;  // all initial rows but the block's number are in place

  void add_group(u32 mask, u32 pc, GroupState state = GroupState::ready) {
    groups[group_count++] = Group{mask, pc, state, false, 0, kPatience, serials++};
  }
  Group& group() { return groups[current]; }
};

struct Barrier {
  bool in_use = false;
  u32 expected = 0;              // threads; 0: all of the block
  u32 arrived[kWarpLanes] = {};  // per warp (32 at most), lanes
  u32 true_count = 0;            // bar.red
  u32 false_count = 0;
};

inline constexpr u32 kUserBarriers = 16;
inline constexpr u32 kClusterBarrier = kUserBarriers;  // barrier.cluster: a cluster is one block
inline constexpr u32 kBarriers = kUserBarriers + 1;

struct Launch;

struct Block {
  Launch* launch = nullptr;
  Dim3 id;
  u64 number = 0;
  u32 processor = 0;  // which CPU thread runs it
  u8* shared = nullptr;
  std::vector<Warp> warps;
  u32 live_warps = 0;
  Barrier barriers[kBarriers];
  std::unique_ptr<u8[], void (*)(void*)> memory{nullptr, nullptr};  // shared memory, registers, local memory
};

struct CachedRange {
  u64 begin = 0;
  u64 bytes = 0;
};

// What handlers see: the lanes of one warp that execute one instruction.
struct Lanes {
  u8* regs = nullptr;
  const u8* consts = nullptr;
  u32 mask = 0;
  u32 pc = 0;
  u32 next = 0;        // instruction to go on with; handlers that branch change it
  bool event = false;  // the groups changed: choose again
  u32 patience = 0;    // instructions left of the group's turn
  Warp* warp = nullptr;
  Block* block = nullptr;
  Launch* launch = nullptr;
  CachedRange* ranges = nullptr;  // one a memory access in the code, private to the CPU thread

  template <typename T>
  [[nodiscard]] const T* in(Place place) const {
    return reinterpret_cast<const T*>(place >= 0 ? regs + place : consts + ~place);
  }
  template <typename T>
  [[nodiscard]] T* out(Place place) const {
    return reinterpret_cast<T*>(regs + place);
  }
  [[nodiscard]] u32 predicate(Place place) const { return *in<u32>(place); }
  // Sets the bits of the executing lanes.
  void set_predicate(Place place, u32 bits) const {
    u32* p = out<u32>(place);
    *p = (*p & ~mask) | (bits & mask);
  }
};

struct Launch {
  const ProgramImpl* program = nullptr;
  const KernelLayout* kernel = nullptr;
  const Function* function = nullptr;
  Dim3 grid;
  Dim3 block;
  u32 block_threads = 0;
  u32 block_warps = 0;
  u32 dynamic_shared_bytes = 0;
  u32 requested_shared_bytes = 0;  // static and dynamic
  u32 reserved_shared_offset = 0;
  u32 shared_bytes = 0;  // all that a block may touch
  u32 cpu_threads = 1;
  u64 blocks = 0;
  std::vector<u8> parameters;
  MemoryMap* memory = nullptr;
  int output = -1;
  u64 id = 0;
  std::atomic<u64> next_block{0};
  std::atomic<u64> resident_bytes{0};  // of blocks that have begun
  std::atomic<bool> stop{false};
  std::mutex mutex;  // result, output
  LaunchResult result;
  std::string output_text;

  void fail(const LaunchFault& fault, const Block& block, const Warp& warp, u32 pc);
  void fail(Fault fault, const std::string& detail);
  void print(std::string_view text);
  void flush_output();
};

// Runs f(lane) for the executing lanes; without branches when all of them do. The places that f touches are
// either the same row or disjoint, so the loop may be vectorised.
template <typename F>
inline void each_lane(u32 mask, F f) {
  if (mask == ~0u) {
#pragma GCC ivdep
    for (u32 lane = 0; lane < kWarpLanes; ++lane) f(lane);
  } else {
    for (; mask != 0; mask &= mask - 1) f(static_cast<u32>(__builtin_ctz(mask)));
  }
}

inline u32 first_lane(u32 mask) {
  return static_cast<u32>(__builtin_ctz(mask));
}

// Scheduling, used by the handlers of control instructions (scheduler.cpp).
// Makes the executing lanes a group of their own: the others go on at `rest_pc`.
void split_off(Lanes& lanes, u32 rest_pc);
// Sends the executing lanes to `target`, the others to the next instruction.
void branch_to(Lanes& lanes, u32 target);
void exit_lanes(Lanes& lanes);
// The executing lanes wait at this instruction, which will be executed again, for other lanes of the warp.
void wait_for_lanes(Lanes& lanes);

void fill_initial_rows(const Launch& launch, const Block& block, Warp& warp);

}  // namespace gpupool::softgpu::engine
