// The cuMemset family.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

u64 extent(const CUDA_MEMSET_NODE_PARAMS& p) {
  return (p.height - 1) * p.pitch + p.width * p.elementSize;
}

template <typename T>
void fill_row(u64 address, u32 value, u64 count) {
  std::fill_n(reinterpret_cast<T*>(address), count, static_cast<T>(value));
}

CUDA_MEMSET_NODE_PARAMS fill(u64 to, u64 pitch, u32 value, u32 element, u64 width, u64 height) {
  CUDA_MEMSET_NODE_PARAMS p{};
  p.dst = to;
  p.pitch = pitch;
  p.value = value;
  p.elementSize = element;
  p.width = width;
  p.height = height;
  return p;
}

// Waits, which the driver need not do for device memory; nobody can tell but by the time.
CUresult fill_now(const CUDA_MEMSET_NODE_PARAMS& p) {
  return call([&] {
    const auto stream = resolve_stream(nullptr);
    run_on_stream(stream, make_memset(p));
  });
}

CUresult fill_later(const CUDA_MEMSET_NODE_PARAMS& p, CUstream stream) {
  return call([&] { put_on_stream(resolve_stream(stream), make_memset(p)); });
}

// Zeroes large device memory by giving its pages back, which then read zero: whoever clears every allocation,
// as a worker does, must not commit memory that the program never touches.
bool zero_by_emptying(u64 address, u64 bytes) {
  if (bytes < kLargeBytes) return false;
  const std::optional<Allocation> allocation = memory_table().find(address);
  const bool from_arena =
      allocation && (allocation->kind == MemoryKind::device || allocation->kind == MemoryKind::pooled);
  if (!from_arena || bytes > allocation->end() - address) return false;
  const u64 first = round_up(address, kPageBytes), last = (address + bytes) / kPageBytes * kPageBytes;
  if (madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) != 0) return false;
  std::memset(reinterpret_cast<void*>(address), 0, first - address);
  std::memset(reinterpret_cast<void*>(last), 0, address + bytes - last);
  return true;
}

}  // namespace

std::shared_ptr<MemsetOperation> make_memset(const CUDA_MEMSET_NODE_PARAMS& p) {
  require(p.elementSize == 1 || p.elementSize == 2 || p.elementSize == 4);
  require(p.dst % p.elementSize == 0);
  auto operation = std::make_shared<MemsetOperation>();
  operation->parameters = p;
  if (p.width == 0 || p.height == 0) return operation;
  constexpr u64 kLimit = 1ull << 47;
  require(p.width < kLimit && p.height < kLimit && p.pitch < kLimit);
  if (p.height > 1) {
    require(p.pitch >= p.width * p.elementSize && p.pitch % p.elementSize == 0);
    require(p.height <= kLimit / p.pitch);
  }
  require_device_range(p.dst, extent(p));
  return operation;
}

CUresult MemsetOperation::run(Context&) const {
  const CUDA_MEMSET_NODE_PARAMS& p = parameters;
  if (p.width == 0 || p.height == 0) return CUDA_SUCCESS;
  if (!memory_table().covers(p.dst, extent(p))) return CUDA_ERROR_ILLEGAL_ADDRESS;
  if (p.value == 0 && p.height == 1 && zero_by_emptying(p.dst, extent(p))) return CUDA_SUCCESS;
  for (u64 row = 0; row < p.height; ++row) {
    const u64 address = p.dst + row * p.pitch;
    if (p.elementSize == 1)
      std::memset(reinterpret_cast<void*>(address), static_cast<int>(p.value & 0xff), p.width);
    else if (p.elementSize == 2)
      fill_row<u16>(address, p.value, p.width);
    else
      fill_row<u32>(address, p.value, p.width);
  }
  return CUDA_SUCCESS;
}

GPUPOOL_CUDA CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
  return fill_now(fill(to, 0, value, 1, count, 1));
}

GPUPOOL_CUDA CUresult cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) {
  return fill_now(fill(to, 0, value, 2, count, 1));
}

GPUPOOL_CUDA CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned int value, size_t count) {
  return fill_now(fill(to, 0, value, 4, count, 1));
}

GPUPOOL_CUDA CUresult cuMemsetD2D8_v2(CUdeviceptr to, size_t pitch, unsigned char value, size_t width,
                                      size_t height) {
  return fill_now(fill(to, pitch, value, 1, width, height));
}

GPUPOOL_CUDA CUresult cuMemsetD2D16_v2(CUdeviceptr to, size_t pitch, unsigned short value, size_t width,
                                       size_t height) {
  return fill_now(fill(to, pitch, value, 2, width, height));
}

GPUPOOL_CUDA CUresult cuMemsetD2D32_v2(CUdeviceptr to, size_t pitch, unsigned int value, size_t width,
                                       size_t height) {
  return fill_now(fill(to, pitch, value, 4, width, height));
}

GPUPOOL_CUDA CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  return fill_later(fill(to, 0, value, 1, count, 1), stream);
}

GPUPOOL_CUDA CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
  return fill_later(fill(to, 0, value, 2, count, 1), stream);
}

GPUPOOL_CUDA CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream) {
  return fill_later(fill(to, 0, value, 4, count, 1), stream);
}

GPUPOOL_CUDA CUresult cuMemsetD2D8Async(CUdeviceptr to, size_t pitch, unsigned char value, size_t width,
                                        size_t height, CUstream stream) {
  return fill_later(fill(to, pitch, value, 1, width, height), stream);
}

GPUPOOL_CUDA CUresult cuMemsetD2D16Async(CUdeviceptr to, size_t pitch, unsigned short value, size_t width,
                                         size_t height, CUstream stream) {
  return fill_later(fill(to, pitch, value, 2, width, height), stream);
}

GPUPOOL_CUDA CUresult cuMemsetD2D32Async(CUdeviceptr to, size_t pitch, unsigned int value, size_t width,
                                         size_t height, CUstream stream) {
  return fill_later(fill(to, pitch, value, 4, width, height), stream);
}

}  // namespace gpupool::softgpu
