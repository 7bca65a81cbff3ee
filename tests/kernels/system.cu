// Kernels that reach the edges of the machine: printf, assertions, traps, faults, barriers of every kind, asynchronous
// copies, cooperative groups. system.ptx: nvcc -ptx -arch=compute_90 system.cu
#include <cassert>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cstdio>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

namespace cg = cooperative_groups;

extern "C" {

__global__ void hello(int n) {
  int i = threadIdx.x;
  if (i < n)
    printf("thread %d of %u: %s %5.2f [%-6s] %c %lld %x %p %%\n", i, blockDim.x, i & 1 ? "odd" : "even", i * 1.5, "ab", 'a' + i,
           -1234567890123ll * i, 255u, (void*)0);
}

__global__ void check(const int* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) assert(in[i] >= 0);
}

__global__ void traps(int* out) {
  out[threadIdx.x] = 1;
  if (threadIdx.x == 7) __trap();
}

__global__ void out_of_bounds(int* out, int at) { out[at + threadIdx.x] = 1; }

__global__ void misaligned(char* out) { *(int*)(out + 1 + threadIdx.x * 4) = 1; }

__global__ void beyond_shared(int* out, int at) {
  extern __shared__ int data[];
  data[at] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = data[at];
}

__global__ void unfinished_barrier(int* out) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 96;");
  out[threadIdx.x] = 1;
}

// Producer and consumer warps over named barriers.
__global__ void named_barriers(const int* in, int* out, int rounds) {
  __shared__ int slot[32];
  int lane = threadIdx.x & 31;
  if (threadIdx.x < 32) {
    for (int i = 0; i < rounds; ++i) {
      asm volatile("bar.sync 2, 64;" ::: "memory");
      slot[lane] = in[i * 32 + lane] * 2;
      asm volatile("bar.arrive 1, 64;" ::: "memory");
    }
  } else {
    asm volatile("bar.arrive 2, 64;" ::: "memory");
    for (int i = 0; i < rounds; ++i) {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      out[i * 32 + lane] = slot[lane] + 1;
      if (i + 1 < rounds) asm volatile("bar.arrive 2, 64;" ::: "memory");
    }
  }
}

__global__ void early_exit(int* out) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  if (threadIdx.x % 3 == 1) return;
  atomicAdd(&sum, 1);
  __syncthreads();
  out[threadIdx.x] = sum;
}

__global__ void async_copy(const float4* in, float4* out, int n) {
  extern __shared__ float4 stage[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) __pipeline_memcpy_async(&stage[threadIdx.x], &in[i], 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  unsigned other = blockDim.x - 1 - threadIdx.x;
  if (blockIdx.x * blockDim.x + other < n && i < n) out[i] = stage[other];
}

__global__ void groups(const int* in, int* out) {
  cg::thread_block block = cg::this_thread_block();
  cg::thread_block_tile<8> tile = cg::tiled_partition<8>(block);
  int v = in[block.thread_rank()];
  out[block.thread_rank()] = cg::reduce(tile, v, cg::plus<int>());
  if (v & 1) {
    cg::coalesced_group active = cg::coalesced_threads();
    out[block.size() + block.thread_rank()] = active.shfl(v, 0) + active.size() * 1000;
  } else {
    out[block.size() + block.thread_rank()] = -1;
  }
}

// A barrier over the whole grid by hand: every block must make progress while others wait.
__global__ void grid_barrier(unsigned* arrived, int* data, int* out) {
  data[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(arrived, 1);
    while (*(volatile unsigned*)arrived < gridDim.x) __nanosleep(20);
  }
  __syncthreads();
  int sum = 0;
  for (int b = 0; b < gridDim.x; ++b) sum += ((volatile int*)data)[b * blockDim.x + threadIdx.x];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void halves(const __half2* a, const __half2* b, __half2* c, const __nv_bfloat16* d, __nv_bfloat16* e, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  c[i] = __hfma2(a[i], b[i], __hadd2(a[i], __float2half2_rn(0.5f)));
  e[i] = __hmul(d[i], __float2bfloat16(1.5f)) + d[i];
}

__global__ void mathematics(const float* in, float* out, const double* wide, double* wide_out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = in[i];
  float* at = out + 16 * i;
  at[0] = sinf(v);
  at[1] = cosf(v);
  at[2] = expf(v);
  at[3] = logf(fabsf(v) + 1);
  at[4] = powf(fabsf(v), 1.7f);
  at[5] = tanhf(v);
  at[6] = sqrtf(fabsf(v));
  at[7] = 1.0f / v;
  at[8] = __expf(v);
  at[9] = __sinf(v);
  at[10] = rsqrtf(fabsf(v));
  at[11] = atan2f(v, 2.0f);
  at[12] = fmodf(v, 3.0f);
  at[13] = erff(v);
  at[14] = roundf(v) + truncf(v) * 100 + rintf(v) * 10000;
  at[15] = sinf(v * 1e7f);  // the slow path of the argument reduction
  double w = wide[i];
  double* to = wide_out + 6 * i;
  to[0] = sin(w);
  to[1] = exp(w);
  to[2] = log(fabs(w) + 1);
  to[3] = pow(fabs(w), 0.3);
  to[4] = sqrt(fabs(w)) / w;
  to[5] = fma(w, w, 1.0 / w);
}

__global__ void wide_integers(const long long* a, const long long* b, long long* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __int128 p = (__int128)a[i] * b[i] + a[i];
  unsigned __int128 q = (unsigned __int128)p / (unsigned long long)(b[i] | 1);
  out[4 * i] = (long long)(p >> 64);
  out[4 * i + 1] = (long long)p;
  out[4 * i + 2] = (long long)q;
  out[4 * i + 3] = a[i] / (b[i] | 1) + a[i] % (b[i] | 1) + __mul64hi(a[i], b[i]);
}

__global__ void clocks(long long* out) {
  long long start = clock64();
  __nanosleep(100);
  unsigned long long timer;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(timer));
  out[0] = clock64() - start;
  out[1] = (long long)timer;
}

__global__ void spaces(int* out, const int* constant_pointer) {
  __shared__ int shared;
  int local = threadIdx.x;
  int* volatile pointers[3] = {&shared, &local, out};
  for (int i = 0; i < 3; ++i) {
    int* p = pointers[i];
    out[i + 1] = __isShared(p) | __isLocal(p) << 1 | __isGlobal(p) << 2;
    *p = 100 + i;
  }
  out[4] = shared;
  out[5] = local;
}

// Needs the lanes that named each other to meet, though they come by different ways.
__global__ void separate_ways(const int* in, int* out) {
  int v = in[threadIdx.x], r = 0;
  if (v & 1) {
    for (int i = 0; i < (v & 15); ++i) r += i * v;
  } else {
    r = v * 3;
  }
  r += __shfl_xor_sync(0xffffffffu, v, 1);
  if (threadIdx.x & 2) {
    r ^= 5;
    __syncwarp(0xccccccccu);
  } else {
    r += 9;
    __syncwarp(0x33333333u);
  }
  __syncwarp();
  out[threadIdx.x] = r;
}

__global__ void block_reduce(const int* in, int* out) {
  int v = in[blockIdx.x * blockDim.x + threadIdx.x];
  v = __reduce_add_sync(0xffffffffu, v);
  __shared__ int sums[32];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0;
    v = __reduce_add_sync(0xffffffffu, v);
    if (threadIdx.x == 0) out[blockIdx.x] = v;
  }
}
}

template <typename T>
__global__ void templated(T* out, T a) {
  out[threadIdx.x] = a * static_cast<T>(threadIdx.x);
}
template __global__ void templated<double>(double*, double);

struct Shape {
  __device__ virtual float area() const = 0;
};
struct Square : Shape {
  float side;
  __device__ Square(float s) : side(s) {}
  __device__ float area() const override { return side * side; }
};
struct Circle : Shape {
  float radius;
  __device__ Circle(float r) : radius(r) {}
  __device__ float area() const override { return 3.0f * radius * radius; }
};
extern "C" __global__ void virtual_calls(float* out) {
  Square square(threadIdx.x);
  Circle circle(threadIdx.x);
  const Shape* shapes[2] = {&square, &circle};
  out[threadIdx.x] = shapes[(threadIdx.x >> 1) & 1]->area();
}
