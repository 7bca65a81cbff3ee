#include "guest/runtime/manual/copy_box.hpp"

#include <cstring>

#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/copy_parts.hpp"
#include "guest/runtime/manual/copy_sender.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_host_copy.hpp"
#include "guest/runtime/manual/stream.hpp"
#include "guest/runtime/profile.hpp"
#include "guest/runtime/thread_state.hpp"

namespace gpupool::guest {
namespace {

u8* host_row(const BoxSide& side, u64 x, u64 y, u64 z) {
  return reinterpret_cast<u8*>(side.address) + ((side.z + z) * side.height + side.y + y) * side.pitch +
         side.x_bytes + x;
}

wire::Place place_of(const BoxSide& side, const Part& part) {
  wire::Place place{};
  place.kind = side.kind == BoxSide::Kind::array ? wire::PlaceKind::array : wire::PlaceKind::device;
  place.lod = side.lod;
  place.address = side.address;
  place.x_bytes = side.x_bytes + part.x;
  place.y = side.y + part.y;
  place.z = side.z + part.z;
  place.pitch = side.pitch;
  place.height = side.height;
  return place;
}

// The part as it lies packed in its piece.
wire::Place packed(const Part& part) {
  wire::Place place{};
  place.kind = wire::PlaceKind::piece;
  place.pitch = part.width;
  place.height = part.height;
  return place;
}

wire::BoxCopy message(const wire::Place& source, const wire::Place& destination, const Part& part) {
  return wire::BoxCopy{source, destination, part.width, part.height, part.depth, 0, 0};
}

bool is_capturing(const Stream& stream) {
  return stream.capturing.load(std::memory_order_acquire);
}

// The bytes from the first to one past the last that the side covers, or 0 when 64 bits do not hold them.
u64 span_of(const BoxSide& side, const Box& box) {
  u64 rows = 0;
  u64 bytes = 0;
  if (__builtin_mul_overflow(box.depth - 1, side.height, &rows) ||
      __builtin_add_overflow(rows, box.height - 1, &rows) ||
      __builtin_mul_overflow(rows, side.pitch, &bytes) ||
      __builtin_add_overflow(bytes, box.width_bytes, &bytes))
    return 0;
  return bytes;
}

// A captured copy with memory of this process alone works on one piece, whenever the graph runs.
CUresult capture_box(const Box& box, CopySender& sender, bool to_host) {
  CUresult error = CUDA_SUCCESS;
  const Part whole{0, 0, 0, box.width_bytes, box.height, box.depth};
  const BoxSide& host = to_host ? box.destination : box.source;
  const auto piece = make_graph_piece(host, box.width_bytes, box.height, box.depth, to_host, error);
  if (piece == nullptr) return error;
  if (!keep_for_capture(sender.stream(), piece)) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  const wire::BoxCopy copy = to_host ? message(place_of(box.source, whole), packed(whole), whole)
                                     : message(packed(whole), place_of(box.destination, whole), whole);
  sender.send(wire::Function::cuMemcpy3DAsync_v2, copy, to_host ? wire::kBulkOut : wire::kBulkIn,
              piece->bulk.offset, whole.bytes());
  return sender.error();
}

CUresult send_parts(const Box& box, CopySender& sender, CopyCall call) {
  if (is_capturing(sender.stream())) return capture_box(box, sender, false);
  Session& session = sender.session();
  Cutter cutter(box.width_bytes, box.height, box.depth, kCopyChunk);
  Part part;
  u64 value = 0;
  while (cutter.next(part)) {
    const Bulk piece = session.stage(part.bytes());
    if (!piece) return session.failed();
    pack_box(piece.address, box.source, part);
    value = sender.send(wire::Function::cuMemcpy3DAsync_v2,
                        message(packed(part), place_of(box.destination, part), part),
                        static_cast<u16>(wire::kBulkIn | wire::kMark), piece.offset, part.bytes());
    session.release(piece, sender.completion(value));
    if (value == 0) return sender.error();
  }
  if (call == CopyCall::synchronous) sender.wait(value);
  return sender.error();
}

CUresult receive_parts(const Box& box, CopySender& sender) {
  if (is_capturing(sender.stream())) return capture_box(box, sender, true);
  const ReturnPiece piece(sender.session(), kCopyChunk * kCopyDepth);
  if (!piece) return piece.error();
  Cutter cutter(box.width_bytes, box.height, box.depth, kCopyChunk);
  Part parts[kCopyDepth];
  u64 values[kCopyDepth] = {};
  u64 issued = 0;
  const auto issue = [&] {
    const u64 place = issued % kCopyDepth;
    if (sender.failed() || !cutter.next(parts[place])) return false;
    values[place] =
        sender.send(wire::Function::cuMemcpy3DAsync_v2,
                    message(place_of(box.source, parts[place]), packed(parts[place]), parts[place]),
                    wire::kBulkOut | wire::kMark, piece.offset() + place * kCopyChunk, parts[place].bytes());
    if (values[place] == 0) return false;
    ++issued;
    return true;
  };
  while (issued < kCopyDepth && issue()) {
  }
  for (u64 turn = 0; turn < issued; ++turn) {
    const u64 place = turn % kCopyDepth;
    // Also after a failure: the piece must not be reused while the worker may still write to it.
    if (!sender.wait(values[place]) || sender.failed()) continue;
    unpack_box(piece.address() + place * kCopyChunk, box.destination, parts[place]);
    issue();
  }
  return sender.error();
}

// A pinned side is named in place; nothing is packed.
wire::Place in_place(const BoxSide& side) {
  wire::Place place{};
  place.kind = wire::PlaceKind::piece;
  place.pitch = side.pitch;
  place.height = side.height;
  return place;
}

CUresult copy_pinned(const Box& box, CopySender& sender, u64 offset, u64 bytes, bool to_device,
                     CopyCall call) {
  const Part whole{0, 0, 0, box.width_bytes, box.height, box.depth};
  const wire::BoxCopy copy = to_device
                                 ? message(in_place(box.source), place_of(box.destination, whole), whole)
                                 : message(place_of(box.source, whole), in_place(box.destination), whole);
  // What comes back into pinned memory is always marked, as all data that the worker writes to the window.
  const bool mark = !is_capturing(sender.stream()) && (call == CopyCall::synchronous || !to_device);
  const u64 value =
      sender.send(wire::Function::cuMemcpy3DAsync_v2, copy,
                  static_cast<u16>((to_device ? wire::kBulkIn : wire::kBulkOut) | (mark ? wire::kMark : 0)),
                  offset, bytes);
  if (value != 0 && call == CopyCall::synchronous) sender.wait(value);
  return sender.error();
}

CUresult copy_on_host(const Box& box, Stream& stream) {
  if (const CUresult result = wait_for_stream(stream); result != CUDA_SUCCESS) return result;
  for (u64 z = 0; z < box.depth; ++z)
    for (u64 y = 0; y < box.height; ++y)
      std::memmove(host_row(box.destination, 0, y, z), host_row(box.source, 0, y, z), box.width_bytes);
  return CUDA_SUCCESS;
}

CUresult check_device_side(const BoxSide& side, const Box& box) {
  if (side.kind != BoxSide::Kind::device) return CUDA_SUCCESS;
  const u64 bytes = span_of(side, box);
  const u64 first = side.address + (side.z * side.height + side.y) * side.pitch + side.x_bytes;
  return bytes == 0 ? CUDA_ERROR_INVALID_VALUE : check_device_range(first, bytes);
}

// What a box does not need, programs leave 0: the pitch of a single row, the height of a single slice.
void complete(BoxSide& side, const Box& box) {
  if (box.height == 1 && box.depth == 1 && side.pitch < side.x_bytes + box.width_bytes)
    side.pitch = side.x_bytes + box.width_bytes;
  if (box.depth == 1 && side.height < side.y + box.height) side.height = side.y + box.height;
}

}  // namespace

void pack_box(u8* piece, const BoxSide& side, const Part& part) {
  for (u64 z = 0; z < part.depth; ++z)
    for (u64 y = 0; y < part.height; ++y, piece += part.width)
      std::memcpy(piece, host_row(side, part.x, part.y + y, part.z + z), part.width);
}

void unpack_box(const u8* piece, const BoxSide& side, const Part& part) {
  for (u64 z = 0; z < part.depth; ++z)
    for (u64 y = 0; y < part.height; ++y, piece += part.width)
      std::memcpy(host_row(side, part.x, part.y + y, part.z + z), piece, part.width);
}

CUresult copy_box(Box box, Stream& stream, CopyCall call) {
  if (box.width_bytes == 0 || box.height == 0 || box.depth == 0) return CUDA_SUCCESS;
  const bool from_host = box.source.kind == BoxSide::Kind::host;
  const bool to_host = box.destination.kind == BoxSide::Kind::host;
  for (BoxSide* side : {&box.source, &box.destination}) {
    complete(*side, box);
    if (side->address == 0) return CUDA_ERROR_INVALID_VALUE;
    const bool rows = box.height * box.depth > 1 && side->kind != BoxSide::Kind::array;
    if (rows && side->pitch < box.width_bytes) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_device_side(*side, box); result != CUDA_SUCCESS) return result;
  }
  if (from_host && to_host) return copy_on_host(box, stream);
  CopySender sender(*Session::current(), stream);
  if (from_host || to_host) {
    const BoxSide& host = from_host ? box.source : box.destination;
    const u64 bytes = span_of(host, box);
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    const u64 moved = box.width_bytes * box.height * box.depth;
    profile_bytes(from_host ? moved : 0, to_host ? moved : 0);
    // In place only on shared memory: a stream transport would carry the gaps between the rows as well, and
    // write old content over them on its way back.
    const u64 offset =
        sender.session().shared_memory() ? sender.session().pinned_offset(host_row(host, 0, 0, 0), bytes) : 0;
    if (offset != 0) return copy_pinned(box, sender, offset, bytes, from_host, call);
    return from_host ? send_parts(box, sender, call) : receive_parts(box, sender);
  }
  const Part whole{0, 0, 0, box.width_bytes, box.height, box.depth};
  wire::BoxCopy copy = message(place_of(box.source, whole), place_of(box.destination, whole), whole);
  const bool peer = box.source_context != nullptr;
  if (peer) {
    copy.source_context = box.source_context->index;
    copy.destination_context = box.destination_context->index;
  }
  const bool waits = peer && call == CopyCall::synchronous;
  if (waits)
    if (const CUresult result = wait_for_both(*box.source_context, *box.destination_context);
        result != CUDA_SUCCESS)
      return result;
  sender.send(peer ? wire::Function::cuMemcpy3DPeerAsync : wire::Function::cuMemcpy3DAsync_v2, copy, 0);
  return sender.failed() || !waits ? sender.error() : wait_for_stream(stream);
}

}  // namespace gpupool::guest
