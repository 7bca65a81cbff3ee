// What a warp's registers hold when its block starts: special registers and addresses of shared variables.
#include "hostd/softgpu/engine/machine.hpp"

namespace gpupool::softgpu::engine {
namespace {

template <typename T, typename F>
void fill(Warp& warp, Place place, F value) {
  T* row = reinterpret_cast<T*>(warp.regs + place);
  for (u32 lane = 0; lane < kWarpLanes; ++lane) row[lane] = static_cast<T>(value(lane));
}

u64 uniform_value(const Launch& launch, const Block& block, const Warp& warp, const InitialRow& row) {
  switch (row.what) {
    case Initial::ntid_x:
      return launch.block.x;
    case Initial::ntid_y:
      return launch.block.y;
    case Initial::ntid_z:
      return launch.block.z;
    case Initial::ctaid_x:
      return block.id.x;
    case Initial::ctaid_y:
      return block.id.y;
    case Initial::ctaid_z:
      return block.id.z;
    case Initial::nctaid_x:
      return launch.grid.x;
    case Initial::nctaid_y:
      return launch.grid.y;
    case Initial::nctaid_z:
      return launch.grid.z;
    case Initial::warpid:
      return warp.index;
    case Initial::nwarpid:
      return launch.block_warps;
    case Initial::smid:
      return block.processor;
    case Initial::nsmid:
      return launch.cpu_threads;
    case Initial::gridid:
      return launch.id;
    case Initial::dynamic_smem_size:
      return launch.dynamic_shared_bytes;
    case Initial::total_smem_size:
      return launch.requested_shared_bytes;
    case Initial::reserved_begin:
      return launch.reserved_shared_offset;
    case Initial::reserved_second:
      return launch.reserved_shared_offset + kReservedSharedBytes / 2;
    case Initial::reserved_end:
      return launch.reserved_shared_offset + kReservedSharedBytes;
    case Initial::reserved_cap:
      return kReservedSharedBytes;
    case Initial::one:
      return 1;
    case Initial::shared_variable:
      return launch.kernel->shared_offsets.at(row.variable);
    default:
      return 0;
  }
}

u64 lane_value(const Launch& launch, const Warp& warp, Initial what, u32 lane) {
  const u32 thread = warp.index * kWarpLanes + lane;
  const u32 bit = 1u << lane;
  switch (what) {
    case Initial::tid_x:
      return thread % launch.block.x;
    case Initial::tid_y:
      return thread / launch.block.x % launch.block.y;
    case Initial::tid_z:
      return thread / launch.block.x / launch.block.y;
    case Initial::laneid:
      return lane;
    case Initial::lanemask_eq:
      return bit;
    case Initial::lanemask_le:
      return bit | (bit - 1);
    case Initial::lanemask_lt:
      return bit - 1;
    case Initial::lanemask_ge:
      return ~(bit - 1);
    default:
      return ~(bit | (bit - 1));  // lanemask_gt
  }
}

bool differs_by_lane(Initial what) {
  switch (what) {
    case Initial::tid_x:
    case Initial::tid_y:
    case Initial::tid_z:
    case Initial::laneid:
    case Initial::lanemask_eq:
    case Initial::lanemask_le:
    case Initial::lanemask_lt:
    case Initial::lanemask_ge:
    case Initial::lanemask_gt:
      return true;
    default:
      return false;
  }
}

}  // namespace

void fill_initial_rows(const Launch& launch, const Block& block, Warp& warp) {
  for (const InitialRow& row : launch.kernel->initial) {
    // No instruction writes these rows, and a warp's registers serve one launch only.
    const bool differs_by_block = row.what >= Initial::ctaid_x && row.what <= Initial::ctaid_z;
    if (warp.rows_filled && !differs_by_block) continue;
    if (row.bytes == 0) {
      *reinterpret_cast<u32*>(warp.regs + row.place) = uniform_value(launch, block, warp, row) != 0 ? ~0u : 0;
    } else if (differs_by_lane(row.what)) {
      fill<u32>(warp, row.place, [&](u32 lane) { return lane_value(launch, warp, row.what, lane); });
    } else {
      const u64 value = uniform_value(launch, block, warp, row);
      if (row.bytes == 4)
        fill<u32>(warp, row.place, [value](u32) { return value; });
      else
        fill<u64>(warp, row.place, [value](u32) { return value; });
    }
  }
  warp.rows_filled = true;
}

}  // namespace gpupool::softgpu::engine
