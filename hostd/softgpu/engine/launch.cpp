// Runs grids: blocks over CPU threads, warps of a block in turn.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>

#include "hostd/softgpu/engine/machine.hpp"
#include "hostd/softgpu/engine/scheduler.hpp"

namespace gpupool::softgpu::engine {
namespace {

constexpr u32 kMaxBlockThreads = 1024;
constexpr u32 kMaxSharedBytes = 227 * 1024;
constexpr u64 kMaxResidentBytes = 1ull << 30;
constexpr size_t kMaxResidentBlocks = 1024;  // per CPU thread
// After this long a block that has not finished may be waiting for one that has not begun: another is
// started.
constexpr auto kBlockTurn = std::chrono::milliseconds(2);
constexpr size_t kOutputChunk = 1u << 16;

u64 align_up(u64 value, u64 alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

u64 block_bytes(const Launch& launch) {
  return align_up(launch.shared_bytes, 1024) +
         static_cast<u64>(launch.block_warps) * launch.kernel->register_bytes +
         static_cast<u64>(launch.block_warps) * kWarpLanes * launch.kernel->local_bytes + 1024;
}

std::unique_ptr<Block> make_block(Launch& launch, u32 processor) {
  auto block = std::make_unique<Block>();
  block->launch = &launch;
  block->processor = processor;
  // Large allocations come as untouched zero pages, so that unused registers and local memory cost nothing.
  block->memory = {static_cast<u8*>(std::calloc(block_bytes(launch), 1)), &std::free};
  if (block->memory == nullptr) return nullptr;
  u8* at = reinterpret_cast<u8*>(align_up(reinterpret_cast<u64>(block->memory.get()), 1024));
  block->shared = at;
  at += align_up(launch.shared_bytes, 1024);
  block->warps.resize(launch.block_warps);
  for (u32 i = 0; i < launch.block_warps; ++i) {
    Warp& warp = block->warps[i];
    warp.block = block.get();
    warp.index = i;
    warp.regs = at;
    at += launch.kernel->register_bytes;
    warp.local = at;
    at += static_cast<u64>(kWarpLanes) * launch.kernel->local_bytes;
  }
  return block;
}

void start_block(Block& block, u64 number) {
  const Launch& launch = *block.launch;
  block.number = number;
  block.id.x = static_cast<u32>(number % launch.grid.x);
  block.id.y = static_cast<u32>(number / launch.grid.x % launch.grid.y);
  block.id.z = static_cast<u32>(number / launch.grid.x / launch.grid.y);
  block.live_warps = launch.block_warps;
  std::fill(std::begin(block.barriers), std::end(block.barriers), Barrier{});
  for (Warp& warp : block.warps) {
    const u32 left = launch.block_threads - warp.index * kWarpLanes;
    start_warp(warp, launch.function->begin, left >= kWarpLanes ? ~0u : (1u << left) - 1);
    fill_initial_rows(launch, block, warp);
    for (std::vector<u8>& saved : warp.saved_frames) saved.clear();
  }
}

// One CPU thread's share of the launch.
class Processor {
 public:
  Processor(Launch& launch, u32 number) : launch_(launch), number_(number), ranges_(launch.program->sites) {}

  void run() {
    size_t turn = 0;
    bool admit = true;
    while (!launch_.stop.load(std::memory_order_relaxed)) {
      if ((admit || resident_.empty()) && begin_block()) turn = resident_.size() - 1;
      if (resident_.empty()) return;
      if (turn >= resident_.size()) turn = 0;
      admit = !run_turn(*resident_[turn]);
      if (admit) {
        ++turn;
        continue;
      }
      launch_.resident_bytes -= bytes_;
      spare_ = std::move(resident_[turn]);
      resident_.erase(resident_.begin() + static_cast<std::ptrdiff_t>(turn));
    }
  }

 private:
  bool begin_block() {
    if (launch_.next_block.load(std::memory_order_relaxed) >= launch_.blocks) return false;
    if (!resident_.empty() && (resident_.size() >= kMaxResidentBlocks ||
                               launch_.resident_bytes.load() + bytes_ > kMaxResidentBytes))
      return false;
    const u64 number = launch_.next_block.fetch_add(1);
    if (number >= launch_.blocks) return false;
    std::unique_ptr<Block> block = spare_ != nullptr ? std::move(spare_) : make_block(launch_, number_);
    if (block == nullptr) {
      launch_.fail(Fault::illegal_instruction, "no memory for a block's registers and local memory");
      return false;
    }
    launch_.resident_bytes += bytes_;
    start_block(*block, number);
    resident_.push_back(std::move(block));
    return true;
  }

  // Runs a block to its end or for its turn; true when it has ended.
  bool run_turn(Block& block) {
    const auto start = std::chrono::steady_clock::now();
    while (block.live_warps != 0 && !launch_.stop.load(std::memory_order_relaxed)) {
      bool progress = false;
      for (Warp& warp : block.warps)
        if (warp.live != 0) progress = run_warp(warp, ranges_.data()) || progress;
      if (!progress && block.live_warps != 0) {
        report_deadlock(block);
        return true;
      }
      if (block.live_warps != 0 && std::chrono::steady_clock::now() - start > kBlockTurn) return false;
    }
    return true;
  }

  // Every thread waits: at barriers that others do not reach, or for lanes that do not come. A GPU would
  // hang.
  void report_deadlock(Block& block) {
    for (Warp& warp : block.warps) {
      if (warp.group_count == 0) continue;
      const Group& group = warp.groups[0];
      const bool barrier = group.state == GroupState::barrier;
      const LaunchFault fault{Fault::trap,
                              barrier ? "deadlock: barrier that not all threads reach"
                                      : "deadlock: warp instruction that not all named lanes reach",
                              static_cast<u32>(__builtin_ctz(group.mask))};
      return launch_.fail(fault, block, warp, group.pc);
    }
  }

  Launch& launch_;
  u32 number_;
  u64 bytes_ = block_bytes(launch_);
  std::vector<CachedRange> ranges_;
  std::vector<std::unique_ptr<Block>> resident_;
  std::unique_ptr<Block> spare_;
};

void run_processor(Launch& launch, u32 number) {
  try {
    Processor(launch, number).run();
  } catch (const std::bad_alloc&) {
    launch.fail(Fault::illegal_instruction, "out of memory while running the kernel");
  }
}

std::string triple(u32 x, u32 y, u32 z) {
  return "(" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")";
}

}  // namespace

void Launch::fail(Fault fault, const std::string& detail) {
  const std::lock_guard lock(mutex);
  if (result.fault != Fault::none) return;
  result.fault = fault;
  result.detail = detail;
  stop = true;
}

void Launch::fail(const LaunchFault& fault, const Block& where, const Warp& warp, u32 pc) {
  const u32 thread = warp.index * kWarpLanes + fault.lane;
  const u32 line = pc < program->code.size() ? program->code[pc].line : 0;
  const std::string place = "block " + triple(where.id.x, where.id.y, where.id.z) + ", thread " +
                            triple(thread % block.x, thread / block.x % block.y, thread / block.x / block.y);
  fail(fault.fault, fault.detail + " (kernel " + function->name + ", " + place + ", PTX line " +
                        std::to_string(line) + ": " + program->line_text(line) + ")");
}

void Launch::print(std::string_view text) {
  const std::lock_guard lock(mutex);
  output_text += text;
  if (output_text.size() > kOutputChunk) flush_output();
}

// Called with the lock held, or when no thread runs. A reader that is gone loses the output and nothing else.
void Launch::flush_output() {
  size_t at = 0;
  while (output >= 0 && at < output_text.size()) {
    const ssize_t written = ::write(output, output_text.data() + at, output_text.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    at += static_cast<size_t>(written);
  }
  output_text.clear();
}

}  // namespace gpupool::softgpu::engine

namespace gpupool::softgpu {

LaunchResult run_kernel(const Program& program, u64 kernel, Dim3 grid, Dim3 block, u32 dynamic_shared_bytes,
                        std::span<const u8> parameters, MemoryMap& memory, u32 threads, int standard_output) {
  static std::atomic<u64> launches{0};
  const auto& implementation = static_cast<const engine::ProgramImpl&>(program);
  engine::Launch launch;
  launch.program = &implementation;
  launch.kernel = &implementation.kernel_layouts.at(kernel);
  launch.function = &implementation.functions[launch.kernel->function];
  launch.grid = grid;
  launch.block = block;
  const u64 block_threads = static_cast<u64>(block.x) * block.y * block.z;
  launch.blocks = static_cast<u64>(grid.x) * grid.y * grid.z;
  if (block_threads == 0 || block_threads > engine::kMaxBlockThreads || block.x > engine::kMaxBlockThreads ||
      block.y > engine::kMaxBlockThreads || launch.blocks == 0)
    return {Fault::illegal_instruction, "launch with impossible dimensions"};
  if (dynamic_shared_bytes > engine::kMaxSharedBytes ||
      launch.kernel->dynamic_shared_offset + dynamic_shared_bytes > engine::kMaxSharedBytes)
    return {Fault::out_of_shared,
            "launch of " + launch.function->name + " with more shared memory than a block can have"};
  launch.block_threads = static_cast<u32>(block_threads);
  launch.block_warps = (launch.block_threads + engine::kWarpLanes - 1) / engine::kWarpLanes;
  launch.dynamic_shared_bytes = dynamic_shared_bytes;
  launch.requested_shared_bytes = launch.kernel->dynamic_shared_offset + dynamic_shared_bytes;
  launch.reserved_shared_offset = (launch.requested_shared_bytes + 15) / 16 * 16;
  launch.shared_bytes = launch.requested_shared_bytes;
  if (launch.kernel->reserved_shared)
    launch.shared_bytes = launch.reserved_shared_offset + engine::kReservedSharedBytes;
  launch.parameters.assign(parameters.begin(), parameters.end());
  launch.parameters.resize(std::max<size_t>(parameters.size(), launch.function->info.parameter_bytes));
  launch.memory = &memory;
  launch.output = standard_output;
  launch.id = launches.fetch_add(1);
  launch.cpu_threads = static_cast<u32>(std::min<u64>(std::max(threads, 1u), launch.blocks));
  {
    std::vector<std::jthread> helpers;
    try {
      for (u32 i = 1; i < launch.cpu_threads; ++i)
        helpers.emplace_back([&launch, i] { engine::run_processor(launch, i); });
    } catch (const std::system_error&) {
      // No more threads to be had: those that there are do all the work.
    }
    engine::run_processor(launch, 0);
  }
  launch.flush_output();
  return launch.result;
}

}  // namespace gpupool::softgpu
