// What a copy means: both sides resolved to addresses, checked, and executed.
#include <cstring>

#include "hostd/softgpu/api/array.hpp"
#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

// The half of CUDA_MEMCPY3D that describes one side.
struct SideParameters {
  CUmemorytype type;
  u64 x, y, z, lod;
  u64 address;
  CUarray array;
  u64 pitch, height;
};

// Bytes from the first to behind the last byte that a side spans.
u64 extent(const CopySide& side, u64 width, u64 height, u64 depth) {
  return (depth - 1) * side.slice + (height - 1) * side.pitch + width;
}

CopySide resolve_array(const SideParameters& p, u64 width, u64 height, u64 depth) {
  CopySide side;
  side.array = arrays().get(p.array);
  const Array& array = *side.array;
  require(p.x <= array.row_bytes && width <= array.row_bytes - p.x);
  require(p.y <= array.rows && height <= array.rows - p.y);
  require(p.z <= array.planes && depth <= array.planes - p.z);
  side.pitch = array.row_bytes;
  side.slice = array.row_bytes * array.rows;
  side.base = array.base + p.z * side.slice + p.y * side.pitch + p.x;
  return side;
}

CopySide resolve(const SideParameters& p, u64 width, u64 height, u64 depth) {
  require(p.lod == 0);
  if (p.type == CU_MEMORYTYPE_ARRAY) return resolve_array(p, width, height, depth);
  require(p.type == CU_MEMORYTYPE_HOST || p.type == CU_MEMORYTYPE_DEVICE || p.type == CU_MEMORYTYPE_UNIFIED);
  constexpr u64 kLimit =
      1ull << 47;  // no side can span more than the address space; products below cannot overflow
  require(p.address != 0 && width < kLimit && height < kLimit && depth < kLimit && p.pitch < kLimit);
  CopySide side;
  const bool rows = height > 1 || depth > 1 || p.y != 0 || p.z != 0;
  if (rows) {
    side.pitch = p.pitch != 0 ? p.pitch : width;
    require(side.pitch >= width && p.x <= side.pitch - width);
    const u64 plane_rows = p.height != 0 ? p.height : height;
    require(depth == 1 || plane_rows >= height);
    require(plane_rows < kLimit && side.pitch <= kLimit / plane_rows);
    side.slice = side.pitch * plane_rows;
    require(p.y <= kLimit / side.pitch && height <= kLimit / side.pitch);
    require(side.slice == 0 || (p.z <= kLimit / side.slice && depth <= kLimit / side.slice));
  }
  require(p.x < kLimit);
  side.base = p.address + p.z * side.slice + p.y * side.pitch + p.x;
  const u64 bytes = extent(side, width, height, depth);
  side.known = memory_table().covers(side.base, bytes);
  if (side.known) return side;
  // A device pointer must be known. A host pointer need not be, but may not be half known.
  require(p.type != CU_MEMORYTYPE_DEVICE && !memory_table().touches(side.base, bytes));
  side.pageable = true;
  return side;
}

void copy_rows(const CopySide& to, const CopySide& from, u64 width, u64 height, u64 depth) {
  for (u64 z = 0; z < depth; ++z)
    for (u64 y = 0; y < height; ++y)
      std::memmove(reinterpret_cast<void*>(to.base + z * to.slice + y * to.pitch),
                   reinterpret_cast<const void*>(from.base + z * from.slice + y * from.pitch), width);
}

}  // namespace

std::shared_ptr<CopyOperation> make_copy(const CUDA_MEMCPY3D& p) {
  auto copy = std::make_shared<CopyOperation>();
  copy->parameters = p;
  copy->width = p.WidthInBytes;
  copy->height = p.Height;
  copy->depth = p.Depth;
  if (copy->width == 0 || copy->height == 0 || copy->depth == 0) {
    copy->width = 0;
    return copy;
  }
  const auto address = [](CUmemorytype type, const void* host, CUdeviceptr device) {
    return type == CU_MEMORYTYPE_HOST ? reinterpret_cast<u64>(host) : static_cast<u64>(device);
  };
  copy->from =
      resolve({p.srcMemoryType, p.srcXInBytes, p.srcY, p.srcZ, p.srcLOD,
               address(p.srcMemoryType, p.srcHost, p.srcDevice), p.srcArray, p.srcPitch, p.srcHeight},
              copy->width, copy->height, copy->depth);
  copy->to = resolve({p.dstMemoryType, p.dstXInBytes, p.dstY, p.dstZ, p.dstLOD,
                      address(p.dstMemoryType, p.dstHost, p.dstDevice), p.dstArray, p.dstPitch, p.dstHeight},
                     copy->width, copy->height, copy->depth);
  return copy;
}

std::shared_ptr<CopyOperation> with_staged_source(const CopyOperation& copy) {
  auto staged = std::make_shared<CopyOperation>(copy);
  const u64 row = copy.width, plane = row * copy.height;
  staged->staged = std::make_shared<std::vector<u8>>(plane * copy.depth);
  staged->from = CopySide{};
  staged->from.base = reinterpret_cast<u64>(staged->staged->data());
  staged->from.pitch = row;
  staged->from.slice = plane;
  copy_rows(staged->from, copy.from, copy.width, copy.height, copy.depth);
  return staged;
}

CUresult CopyOperation::run(Context&) const {
  if (width == 0) return CUDA_SUCCESS;
  for (const CopySide* side : {&to, &from})
    if (side->known && !memory_table().covers(side->base, extent(*side, width, height, depth)))
      return CUDA_ERROR_ILLEGAL_ADDRESS;  // freed since the call, by a program that did not wait
  copy_rows(to, from, width, height, depth);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::softgpu
