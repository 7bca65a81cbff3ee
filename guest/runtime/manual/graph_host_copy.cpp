#include "guest/runtime/manual/graph_host_copy.hpp"

#include <mutex>
#include <unordered_map>

#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/message.hpp"

namespace gpupool::guest {
namespace {

struct Pieces {
  std::mutex mutex;
  std::unordered_map<u64, std::weak_ptr<GraphPiece>> by_offset;
};

Pieces& pieces() {
  static auto& instance = *new Pieces();
  return instance;
}

// Over a stream transport: makes the piece's content travel, with a mark when it comes back.
CUresult send_piece(const GraphPiece& piece, Stream& stream, u64* value) {
  Call call(wire::Function::stream_mark);
  call.on(stream);
  call.attach(piece.bulk.offset, piece.bulk.size, value == nullptr ? wire::kBulkIn : wire::kBulkOut);
  if (value != nullptr) call.mark();
  const CUresult result = call.send();
  if (value != nullptr) *value = call.ticket() + 1;
  return result;
}

}  // namespace

GraphPiece::~GraphPiece() {
  {
    const std::lock_guard lock(pieces().mutex);
    pieces().by_offset.erase(bulk.offset);
  }
  if (Session* session = Session::current(); session != nullptr) session->heap_free(bulk);
}

bool needs_graph_piece(const void* host, u64 bytes) {
  const Session& session = *Session::current();
  return !session.shared_memory() || session.pinned_offset(host, bytes) == 0;
}

std::shared_ptr<GraphPiece> make_graph_piece(const BoxSide& side, u64 width_bytes, u64 height, u64 depth,
                                             bool to_host, CUresult& error) {
  u64 bytes = 0;
  if (__builtin_mul_overflow(width_bytes, height, &bytes) || __builtin_mul_overflow(bytes, depth, &bytes)) {
    error = CUDA_ERROR_INVALID_VALUE;
    return nullptr;
  }
  const Bulk bulk = Session::current()->heap_allocate(bytes, true, error);
  if (!bulk) return nullptr;
  auto piece = std::make_shared<GraphPiece>();
  piece->bulk = bulk;
  piece->side = side;
  piece->box = Part{0, 0, 0, width_bytes, height, depth};
  piece->to_host = to_host;
  const std::lock_guard lock(pieces().mutex);
  pieces().by_offset[bulk.offset] = piece;
  return piece;
}

std::shared_ptr<GraphPiece> find_graph_piece(u64 offset) {
  const std::lock_guard lock(pieces().mutex);
  const auto found = pieces().by_offset.find(offset);
  return found == pieces().by_offset.end() ? nullptr : found->second.lock();
}

CUresult fill_graph_pieces(const GraphContents& contents, Stream& stream) {
  // What is on the stream may still write what the graph reads.
  if (const CUresult result = wait_for_stream(stream); result != CUDA_SUCCESS) return result;
  for (const HostCopy& copy : contents.copies) {
    if (copy.piece->to_host) continue;
    pack_box(copy.piece->bulk.address, copy.piece->side, copy.piece->box);
    if (Session::current()->shared_memory()) continue;
    if (const CUresult result = send_piece(*copy.piece, stream, nullptr); result != CUDA_SUCCESS)
      return result;
  }
  return CUDA_SUCCESS;
}

CUresult empty_graph_pieces(const GraphContents& contents, Stream& stream) {
  Session& session = *Session::current();
  bool any = false;
  u64 value = 0;
  for (const HostCopy& copy : contents.copies) {
    if (!copy.piece->to_host) continue;
    any = true;
    if (session.shared_memory()) continue;
    if (const CUresult result = send_piece(*copy.piece, stream, &value); result != CUDA_SUCCESS)
      return result;
  }
  if (!any) return CUDA_SUCCESS;
  const CUresult result =
      value == 0 ? wait_for_stream(stream) : session.wait_word(stream.handle.index(), value);
  if (result != CUDA_SUCCESS) return result;
  for (const HostCopy& copy : contents.copies)
    if (copy.piece->to_host) unpack_box(copy.piece->bulk.address, copy.piece->side, copy.piece->box);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::guest
