// Copies. The host's side is always the slot's bulk piece, which the dispatcher has checked to lie in the
// window's data area; device addresses travel raw, and the driver says what is wrong with them.
#include <cstring>

#include "hostd/worker/worker.hpp"
#include "wire/cpp/copy_message.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

bool captures(Worker& worker, const Request& request) {
  const StreamEntry* stream = worker.streams.find(request.stream_handle);
  return stream != nullptr && stream->capturing;
}

void need_stream(const Request& request) {
  if (!request.stream_handle) throw wire::ProtocolError("a copy without a stream");
}

CUcontext find_context(Worker& worker, u32 index) {
  const CUcontext* context = worker.contexts.find(wire::Handle::make(wire::HandleKind::context, 0, index));
  return context == nullptr ? nullptr : *context;
}

// Bytes from a place's first to one past its last; false when that is more than 64 bits can hold.
bool extent(const wire::Place& place, const wire::BoxCopy& box, u64& bytes) {
  // Drivers take 0 for "as narrow as the box".
  u64 pitch = place.pitch;
  if (pitch == 0 && __builtin_add_overflow(place.x_bytes, box.width_bytes, &pitch)) return false;
  u64 plane = place.height;
  if (plane == 0 && __builtin_add_overflow(place.y, box.height, &plane)) return false;
  u64 rows = 0;
  if (__builtin_add_overflow(place.z, box.depth - 1, &rows) || __builtin_mul_overflow(rows, plane, &rows) ||
      __builtin_add_overflow(rows, place.y, &rows) || __builtin_add_overflow(rows, box.height - 1, &rows) ||
      __builtin_mul_overflow(rows, pitch, &bytes) || __builtin_add_overflow(bytes, place.x_bytes, &bytes))
    return false;
  return !__builtin_add_overflow(bytes, box.width_bytes, &bytes);
}

// One side of the copy in the driver's terms.
struct Side {
  CUmemorytype type{};
  void* host = nullptr;
  CUdeviceptr device = 0;
  CUarray array = nullptr;
};

CUresult resolve(Worker& worker, const Request& request, const wire::BoxCopy& box, const wire::Place& place,
                 u16 flag, Side& side) {
  switch (place.kind) {
    case wire::PlaceKind::piece: {
      if ((request.flags & flag) == 0)
        throw wire::ProtocolError("a box copy names a piece it does not carry");
      u64 bytes = 0;
      if (place.address > request.bulk_size || !extent(place, box, bytes) ||
          bytes > request.bulk_size - place.address ||
          ((box.height > 1 || box.depth > 1) && place.pitch < box.width_bytes))
        throw wire::ProtocolError("a box copy reaches beyond its piece");
      side.type = CU_MEMORYTYPE_HOST;
      side.host = worker.at(request.bulk_offset) + place.address;
      return CUDA_SUCCESS;
    }
    case wire::PlaceKind::device:
      side.type = CU_MEMORYTYPE_DEVICE;
      side.device = place.address;
      return CUDA_SUCCESS;
    case wire::PlaceKind::array: {
      const CUarray* array = worker.arrays.find(wire::Handle{place.address});
      if (array == nullptr) return CUDA_ERROR_INVALID_HANDLE;
      side.type = CU_MEMORYTYPE_ARRAY;
      side.array = *array;
      return CUDA_SUCCESS;
    }
  }
  throw wire::ProtocolError("a box copy between unknown places");
}

// CUDA_MEMCPY3D and CUDA_MEMCPY3D_PEER have these fields in common.
template <typename Description>
void describe(Description& copy, const wire::BoxCopy& box, const Side& source, const Side& destination) {
  copy.srcXInBytes = box.source.x_bytes;
  copy.srcY = box.source.y;
  copy.srcZ = box.source.z;
  copy.srcLOD = box.source.lod;
  copy.srcMemoryType = source.type;
  copy.srcHost = source.host;
  copy.srcDevice = source.device;
  copy.srcArray = source.array;
  copy.srcPitch = box.source.pitch;
  copy.srcHeight = box.source.height;
  copy.dstXInBytes = box.destination.x_bytes;
  copy.dstY = box.destination.y;
  copy.dstZ = box.destination.z;
  copy.dstLOD = box.destination.lod;
  copy.dstMemoryType = destination.type;
  copy.dstHost = destination.host;
  copy.dstDevice = destination.device;
  copy.dstArray = destination.array;
  copy.dstPitch = box.destination.pitch;
  copy.dstHeight = box.destination.height;
  copy.WidthInBytes = box.width_bytes;
  copy.Height = box.height;
  copy.Depth = box.depth;
}

CUresult read_box(Worker& worker, Request& request, wire::BoxCopy& box, Side& source, Side& destination) {
  need_stream(request);
  box = request.in.get<wire::BoxCopy>();
  request.in.finish();
  if (box.width_bytes == 0 || box.height == 0 || box.depth == 0)
    throw wire::ProtocolError("an empty box copy");
  if (box.source.kind == wire::PlaceKind::piece && box.destination.kind == wire::PlaceKind::piece)
    throw wire::ProtocolError("a box copy within the window");
  CUresult result = resolve(worker, request, box, box.source, wire::kBulkIn, source);
  if (result == CUDA_SUCCESS)
    result = resolve(worker, request, box, box.destination, wire::kBulkOut, destination);
  if (result != CUDA_SUCCESS) return result;
  // For figures only: what absurd sizes of overlapping rows come to does not matter.
  const bool from_host = box.source.kind == wire::PlaceKind::piece;
  const bool to_host = box.destination.kind == wire::PlaceKind::piece;
  const u64 bytes = from_host || to_host ? box.width_bytes * box.height * box.depth : 0;
  (from_host ? worker.tally.to_device_bytes : worker.tally.from_device_bytes) += bytes;
  return CUDA_SUCCESS;
}

}  // namespace

CUresult handle_cuMemcpyHtoDAsync_v2(Worker& worker, Request& request) {
  need_stream(request);
  const auto device = request.in.get<u64>();
  if ((request.flags & wire::kBulkIn) != 0) {
    const auto bytes = request.in.get<u64>();
    request.in.finish();
    if (bytes != request.bulk_size) throw wire::ProtocolError("a copy's size is not that of its piece");
    worker.tally.to_device_bytes += bytes;
    return worker.driver.cuMemcpyHtoDAsync_v2(device, worker.at(request.bulk_offset), bytes, request.stream);
  }
  const std::span<const u8> data = request.in.get_bytes(wire::kInlineCopyBytes);
  request.in.finish();
  // A captured copy would keep the address of this message. The client never sends one.
  if (captures(worker, request)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  worker.tally.to_device_bytes += data.size();
  // From pageable memory the driver takes so few bytes along at once.
  return worker.driver.cuMemcpyHtoDAsync_v2(device, data.data(), data.size(), request.stream);
}

CUresult handle_cuMemcpyDtoHAsync_v2(Worker& worker, Request& request) {
  need_stream(request);
  const auto copy = request.in.get<wire::HostCopy>();
  request.in.finish();
  if ((request.flags & wire::kBulkOut) == 0 || copy.bytes != request.bulk_size)
    throw wire::ProtocolError("a copy's size is not that of its piece");
  worker.tally.from_device_bytes += copy.bytes;
  return worker.driver.cuMemcpyDtoHAsync_v2(worker.at(request.bulk_offset), copy.device, copy.bytes,
                                            request.stream);
}

CUresult handle_cuMemcpyDtoDAsync_v2(Worker& worker, Request& request) {
  need_stream(request);
  const auto copy = request.in.get<wire::DeviceCopy>();
  request.in.finish();
  return worker.driver.cuMemcpyDtoDAsync_v2(copy.destination, copy.source, copy.bytes, request.stream);
}

CUresult handle_cuMemcpyPeerAsync(Worker& worker, Request& request) {
  if (worker.driver.cuMemcpyPeerAsync == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  need_stream(request);
  const auto copy = request.in.get<wire::PeerCopy>();
  request.in.finish();
  const CUcontext to = find_context(worker, copy.destination_context);
  const CUcontext from = find_context(worker, copy.source_context);
  if (to == nullptr || from == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return worker.driver.cuMemcpyPeerAsync(copy.destination, to, copy.source, from, copy.bytes, request.stream);
}

CUresult handle_cuMemcpy3DAsync_v2(Worker& worker, Request& request) {
  if (worker.driver.cuMemcpy3DAsync_v2 == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  wire::BoxCopy box;
  Side source;
  Side destination;
  if (const CUresult result = read_box(worker, request, box, source, destination); result != CUDA_SUCCESS)
    return result;
  CUDA_MEMCPY3D copy{};
  describe(copy, box, source, destination);
  return worker.driver.cuMemcpy3DAsync_v2(&copy, request.stream);
}

CUresult handle_cuMemcpy3DPeerAsync(Worker& worker, Request& request) {
  if (worker.driver.cuMemcpy3DPeerAsync == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  wire::BoxCopy box;
  Side source;
  Side destination;
  if (const CUresult result = read_box(worker, request, box, source, destination); result != CUDA_SUCCESS)
    return result;
  CUDA_MEMCPY3D_PEER copy{};
  describe(copy, box, source, destination);
  copy.srcContext = find_context(worker, box.source_context);
  copy.dstContext = find_context(worker, box.destination_context);
  if (copy.srcContext == nullptr || copy.dstContext == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return worker.driver.cuMemcpy3DPeerAsync(&copy, request.stream);
}

}  // namespace gpupool::worker
