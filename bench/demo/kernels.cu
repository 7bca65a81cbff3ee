// Heat spreading over a square plate, and the plate's total heat: enough to use shared memory, barriers, shuffles
// and many small launches. Compiled to PTX by nvcc or NVRTC.

// One explicit step: each inner point moves towards the mean of its four neighbours.
extern "C" __global__ void step(const float* now, float* next, int side, float rate) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= side || y >= side) return;
  const int at = y * side + x;
  if (x == 0 || y == 0 || x == side - 1 || y == side - 1) {
    next[at] = now[at];
    return;
  }
  const float around = now[at - 1] + now[at + 1] + now[at - side] + now[at + side];
  next[at] = now[at] + rate * (around - 4.0f * now[at]);
}

// Adds all values into *sum: a shuffle tree in each warp, shared memory across warps, one atomic a block.
extern "C" __global__ void total(const float* values, int count, float* sum) {
  __shared__ float partial[32];
  float mine = 0.0f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) mine += values[i];
  for (int distance = 16; distance > 0; distance /= 2) mine += __shfl_down_sync(0xffffffffu, mine, distance);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x < 32) {
    mine = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
    for (int distance = 16; distance > 0; distance /= 2) mine += __shfl_down_sync(0xffffffffu, mine, distance);
    if (threadIdx.x == 0) atomicAdd(sum, mine);
  }
}
