// Small kernels that the software GPU's engine is tested with (tests/cpp/test_ptx_basic.cpp). basic.ptx beside it is what
// nvcc 13.0 makes of this file: nvcc -ptx -arch=compute_75 basic.cu
#include <cuda_fp16.h>

extern "C" {

__global__ void vector_add(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}

__global__ void saxpy(float alpha, const float* x, float* y, unsigned long long n) {
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < n; i += (unsigned long long)gridDim.x * blockDim.x)
    y[i] = alpha * x[i] + y[i];
}

__global__ void reduce_shared(const float* in, float* out, int n) {
  __shared__ float part[256];
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
  part[threadIdx.x] = sum;
  __syncthreads();
  for (int step = blockDim.x / 2; step > 0; step >>= 1) {
    if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

__global__ void reduce_warp(const int* in, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int value = i < n ? in[i] : 0;
  for (int step = 16; step > 0; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
  if ((threadIdx.x & 31) == 0) atomicAdd(out, value);
}

__global__ void shuffles(const int* in, int* out) {
  int lane = threadIdx.x;
  int v = in[lane];
  out[lane] = __shfl_sync(0xffffffffu, v, (lane * 7 + 3) & 31);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, v, 3);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, v, 5);
  out[96 + lane] = __shfl_xor_sync(0xffffffffu, v, 9);
  out[128 + lane] = __shfl_up_sync(0xffffffffu, v, 2, 8);
  out[160 + lane] = __shfl_down_sync(0xffffffffu, v, 1, 4);
  out[192 + lane] = __shfl_sync(0xffffffffu, v, 5, 8);
  if (lane < 16) out[224 + lane] = __shfl_xor_sync(0x0000ffffu, v, 1);
  else out[224 + lane] = __shfl_xor_sync(0xffff0000u, v, 2);
}

__global__ void votes(const int* in, unsigned* out) {
  int lane = threadIdx.x;
  int v = in[lane];
  out[lane] = __ballot_sync(0xffffffffu, v > 10);
  out[32 + lane] = __any_sync(0xffffffffu, v == 77);
  out[64 + lane] = __all_sync(0xffffffffu, v < 1000);
  out[96 + lane] = __match_any_sync(0xffffffffu, v & 3);
  int same;
  out[128 + lane] = __match_all_sync(0xffffffffu, v & ~0xff, &same);
  out[160 + lane] = same;
  if (v & 1) out[192 + lane] = __activemask();
  else out[192 + lane] = ~__activemask();
  out[224 + lane] = __syncthreads_count(v & 1) | __syncthreads_and(v & 1) << 16 | __syncthreads_or(v & 1) << 17;
}

__global__ void atomics(const unsigned* in, unsigned* u, int* s, unsigned long long* w, float* f, double* d, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  __shared__ unsigned local;
  __shared__ float local_float;
  if (threadIdx.x == 0) local = 0, local_float = 0;
  __syncthreads();
  if (i < n) {
    unsigned v = in[i];
    atomicAdd(&u[0], v);
    atomicSub(&u[1], v);
    atomicMin(&u[2], v);
    atomicMax(&u[3], v);
    atomicAnd(&u[4], v | 0xff);
    atomicOr(&u[5], v);
    atomicXor(&u[6], v);
    atomicInc(&u[7], 1000);
    atomicDec(&u[8], 1000);
    atomicMin(&s[0], (int)v);
    atomicMax(&s[1], (int)v);
    atomicAdd(&w[0], (unsigned long long)v << 20);
    atomicMax(&w[1], (unsigned long long)v << 20);
    atomicMin((long long*)&w[2], -(long long)v);
    atomicAdd(f, (float)(v & 15));
    atomicAdd(d, (double)(v & 255));
    atomicAdd(&local, v & 7);
    atomicAdd(&local_float, (float)(v & 3));
    unsigned expected = u[9], seen;
    do {
      seen = expected;
      expected = atomicCAS(&u[9], seen, seen + (v & 1));
    } while (expected != seen);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&u[10], local);
    atomicAdd(&f[1], local_float);
    atomicExch(&u[11], 4711);
  }
}

// One lane after the other takes the lock: needs independent progress of lanes.
__global__ void spin_lock(int* lock, int* counter) {
  bool done = false;
  while (!done) {
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence();
      *(volatile int*)counter = *(volatile int*)counter + 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
  }
}

__global__ void spin_lock_tight(int* lock, int* counter) {
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  *(volatile int*)counter = *(volatile int*)counter + 1;
  __threadfence();
  atomicExch(lock, 0);
}

__global__ void matmul(const float* a, const float* b, float* c, int n) {
  __shared__ float ta[16][16], tb[16][17];
  int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
  float sum = 0;
  for (int t = 0; t < (n + 15) / 16; ++t) {
    ta[threadIdx.y][threadIdx.x] = row < n && t * 16 + threadIdx.x < n ? a[row * n + t * 16 + threadIdx.x] : 0;
    tb[threadIdx.y][threadIdx.x] = column < n && t * 16 + threadIdx.y < n ? b[(t * 16 + threadIdx.y) * n + column] : 0;
    __syncthreads();
    for (int k = 0; k < 16; ++k) sum += ta[threadIdx.y][k] * tb[k][threadIdx.x];
    __syncthreads();
  }
  if (row < n && column < n) c[row * n + column] = sum;
}

__global__ void stencil(const double* in, double* out, int n) {
  extern __shared__ double tile[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int at = threadIdx.x + 2;
  tile[at] = i < n ? in[i] : 0;
  if (threadIdx.x < 2) {
    tile[threadIdx.x] = i >= 2 ? in[i - 2] : 0;
    tile[at + blockDim.x] = i + (int)blockDim.x < n ? in[i + blockDim.x] : 0;
  }
  __syncthreads();
  if (i < n) out[i] = tile[at - 2] + 2 * tile[at - 1] + 3 * tile[at] + 2 * tile[at + 1] + tile[at + 2];
}

__global__ void histogram(const unsigned char* in, unsigned* out, int n) {
  __shared__ unsigned bins[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[in[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&out[i], bins[i]);
}

__global__ void scan(const int* in, int* out, int n) {
  __shared__ int buffer[2][512];
  int t = threadIdx.x, from = 0;
  buffer[0][t] = t < n ? in[t] : 0;
  __syncthreads();
  for (int step = 1; step < blockDim.x; step *= 2) {
    buffer[1 - from][t] = buffer[from][t] + (t >= step ? buffer[from][t - step] : 0);
    from = 1 - from;
    __syncthreads();
  }
  if (t < n) out[t] = buffer[from][t];
}

__global__ void transpose(const int* in, int* out, int width, int height) {
  __shared__ int tile[32][33];
  int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += 8)
    if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
  __syncthreads();
  x = blockIdx.y * 32 + threadIdx.x;
  y = blockIdx.x * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += 8)
    if (x < height && y + j < width) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}

__global__ void vectors(const float4* in, float4* out, const short2* narrow, int2* wide, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float4 v = in[i];
  out[i] = make_float4(v.w, v.z, v.y, v.x);
  short2 s = narrow[i];
  wide[i] = make_int2(s.x * 3, s.y - 5);
}

__global__ void where(unsigned* out) {
  unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  unsigned lane, warp, lt;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  asm("mov.u32 %0, %%warpid;" : "=r"(warp));
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lt));
  unsigned* at = out + 4 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
  at[0] = block;
  at[1] = thread;
  at[2] = lane | warp << 8;
  at[3] = lt;
}

// A loop whose length differs by lane, with a break and a continue.
__global__ void collatz(const unsigned* in, unsigned* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  unsigned long long v = in[i];
  unsigned steps = 0;
  while (v != 1) {
    if (++steps > 400) break;
    if (v & 1) {
      v = 3 * v + 1;
      continue;
    }
    v >>= 1;
  }
  out[i] = steps;
}

__global__ void choose(const int* in, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int v = in[i], r;
  switch (v & 15) {
    case 0: r = v * 3; break;
    case 1: r = v ^ 0x55; break;
    case 2: r = v / 7; break;
    case 3: r = v % 9; break;
    case 4: r = -v; break;
    case 5: r = v << 3; break;
    case 6: r = v >> 2; break;
    case 7: r = v & 0xf0f0; break;
    case 8: r = v | 0x0f0f; break;
    case 9: r = v + 1000; break;
    case 10: r = v - 1000; break;
    default: r = ~v;
  }
  out[i] = r;
}

__device__ unsigned long long generator_state[4] = {1, 2, 3, 4};
__constant__ int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
__device__ int* table_pointer_target = 0;
__device__ unsigned long long* generator_pointer = &generator_state[2];

__global__ void globals(unsigned long long* out) {
  int t = threadIdx.x;
  out[t] = generator_state[t & 3] * 100 + table[t & 7] + (t == 5 ? *generator_pointer * 1000 : 0);
  __syncthreads();
  if (t < 4) generator_state[t] += 10;
}

__global__ void transposed_local(const int* in, int* out, int n) {
  int values[32];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int k = 0; k < 32; ++k) values[k] = in[(i + k) % n];
  // sort, so that indices are not known at compile time
  for (int a = 1; a < 32; ++a) {
    int v = values[a], b = a - 1;
    while (b >= 0 && values[b] > v) {
      values[b + 1] = values[b];
      --b;
    }
    values[b + 1] = v;
  }
  for (int k = 0; k < 32; ++k) out[i * 32 + k] = values[k];
}

__noinline__ __device__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

struct Pair {
  long long a;
  float b;
  char c;
};
__noinline__ __device__ Pair make_pair(int x, double y, const Pair& p) {
  Pair r;
  r.a = p.a + x;
  r.b = (float)(y * p.b);
  r.c = p.c + 1;
  return r;
}

__global__ void calls(int* out, Pair* pairs) {
  int t = threadIdx.x;
  out[t] = fibonacci(t % 12);
  if (t % 3) pairs[t] = make_pair(t, t * 0.5, pairs[t]);
}

typedef int (*Operation)(int, int);
__noinline__ __device__ int op_add(int a, int b) { return a + b; }
__noinline__ __device__ int op_sub(int a, int b) { return a - b; }
__noinline__ __device__ int op_mul(int a, int b) { return a * b; }
__device__ Operation operations[3] = {op_add, op_sub, op_mul};

__global__ void indirect(const int* which, int* out) {
  int t = threadIdx.x;
  out[t] = operations[which[t]](t, 7);
}

struct Big {
  int values[1000];
};
__global__ void big_parameter(Big big, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = big.values[(i * 7) % 1000];
}
}
