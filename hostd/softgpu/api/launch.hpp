// Launching kernels.
#pragma once

#include <span>
#include <vector>

#include "hostd/softgpu/api/module.hpp"
#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

struct LaunchShape {
  Dim3 grid, block;
  u32 shared_bytes = 0;
  bool cooperative = false;
};

class KernelOperation final : public Operation {
 public:
  std::shared_ptr<Function> function;
  LaunchShape shape;
  std::vector<u8> parameters;   // the packed buffer
  std::vector<void*> pointers;  // into it, one a parameter: what a graph node reports as kernelParams
  std::vector<CUlaunchAttribute> attributes;

  CUgraphNodeType type() const override { return CU_GRAPH_NODE_TYPE_KERNEL; }
  CUresult run(Context& context) const override;
  // After copying: the pointers must lead into this one's parameters.
  void point_at_own_parameters();
};

// Checks a launch against the device's and the kernel's limits and packs its parameters. Error INVALID_VALUE,
// LAUNCH_OUT_OF_RESOURCES, COOPERATIVE_LAUNCH_TOO_LARGE.
std::shared_ptr<KernelOperation> make_launch(std::shared_ptr<Function> function, const LaunchShape& shape,
                                             void** kernel_parameters, void** extra);
// Reads launch attributes: ignores hints, refuses (NOT_SUPPORTED) what would change the meaning.
void read_attributes(std::span<const CUlaunchAttribute> attributes, LaunchShape& shape);

// Blocks of this function that one multiprocessor holds at a time (occupancy.cpp).
int blocks_per_sm(const Function& function, int block_size, u64 dynamic_shared_bytes);

// Shared memory a block of this function may ask for at the launch.
u32 dynamic_shared_limit(const Function& function);

}  // namespace gpupool::softgpu
