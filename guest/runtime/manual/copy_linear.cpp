#include "guest/runtime/manual/copy_linear.hpp"

#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include "guest/runtime/manual/address_space.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/copy_sender.hpp"
#include "guest/runtime/manual/copy_threads.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_host_copy.hpp"
#include "guest/runtime/manual/stream.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/profile.hpp"
#include "guest/runtime/thread_state.hpp"

namespace gpupool::guest {
namespace {

using Op = wire::Function;

constexpr u64 kReturnsEarly =
    64 << 10;  // a synchronous copy up to this size from pageable memory returns before its
               // DMA is done, as with the driver (CUDA API synchronization behaviour)
// Over a stream transport pinned memory goes in pieces, so that the network and the copy engine work at once;
// one frame holds no more.
constexpr u64 kStreamChunk = 4u << 20;
constexpr u64 kStreamFrom = 8u << 20;  // copies to the host of this size and more bypass the cache

// Over a stream transport a piece of pinned memory that the GPU's data is still on its way to must not be
// sent: the old content would overwrite the new one at the worker. On shared memory there is nothing to keep.
class PendingReturns {
 public:
  static PendingReturns& instance() {
    static auto* pending = new PendingReturns();
    return *pending;
  }
  void add(Session& session, u64 offset, u64 bytes, const Completion& completion) {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry& entry) {
      return session.word(entry.completion.word) >= entry.completion.value;
    });
    entries_.push_back({offset, bytes, completion});
  }
  CUresult wait_for(Session& session, u64 offset, u64 bytes) {
    std::vector<Completion> waits;
    {
      const std::lock_guard lock(mutex_);
      for (const Entry& entry : entries_)
        if (offset < entry.offset + entry.bytes && entry.offset < offset + bytes)
          waits.push_back(entry.completion);
    }
    for (const Completion& wait : waits)
      if (const CUresult result = session.wait_word(wait.word, wait.value); result != CUDA_SUCCESS)
        return result;
    return CUDA_SUCCESS;
  }

 private:
  struct Entry {
    u64 offset;
    u64 bytes;
    Completion completion;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

u64 least(u64 a, u64 b) {
  return a < b ? a : b;
}

u16 mark_unless_captured(const Stream& stream) {
  return stream.capturing.load(std::memory_order_acquire) ? 0 : wire::kMark;
}

// From pinned memory: the copy engine reads the program's own bytes.
CUresult send_pinned(CopySender& sender, u64 device, u64 offset, u64 bytes, CopyCall call) {
  Session& session = sender.session();
  const bool stream_transport = !session.shared_memory();
  if (stream_transport) {
    const CUresult result = PendingReturns::instance().wait_for(session, offset, bytes);
    if (result != CUDA_SUCCESS) return result;
  }
  const u64 step = stream_transport ? kStreamChunk : bytes;
  u64 value = 0;
  for (u64 at = 0; at < bytes; at += step) {
    const u64 here = least(step, bytes - at);
    const bool last = at + here == bytes;
    const u16 mark = last && call == CopyCall::synchronous ? wire::kMark : 0;
    value = sender.send(Op::cuMemcpyHtoDAsync_v2, wire::HostCopy{device + at, here},
                        static_cast<u16>(wire::kBulkIn | mark), offset + at, here);
    if (value == 0) return sender.error();
  }
  if (call == CopyCall::synchronous) sender.wait(value);
  return sender.error();
}

// One staged piece. Returns the value that completes it, 0 on failure.
u64 send_staged(CopySender& sender, u64 device, const u8* host, u64 bytes) {
  Session& session = sender.session();
  const Bulk piece = session.stage(bytes);
  if (!piece) {
    sender.fail(session.failed() != CUDA_SUCCESS ? session.failed() : CUDA_ERROR_OUT_OF_MEMORY);
    return 0;
  }
  std::memcpy(piece.address, host, bytes);
  const u64 value = sender.send(Op::cuMemcpyHtoDAsync_v2, wire::HostCopy{device, bytes},
                                wire::kBulkIn | wire::kMark, piece.offset, bytes);
  session.release(piece, sender.completion(value));
  return value;
}

// In a capture, with memory of this process alone: the node works on a piece of the window.
CUresult capture_copy(CopySender& sender, u64 device, const void* host, u64 bytes, bool to_host) {
  BoxSide side;
  side.kind = BoxSide::Kind::host;
  side.address = reinterpret_cast<u64>(host);
  side.pitch = bytes;
  side.height = 1;
  CUresult error = CUDA_SUCCESS;
  const auto piece = make_graph_piece(side, bytes, 1, 1, to_host, error);
  if (piece == nullptr) return error;
  if (!keep_for_capture(sender.stream(), piece)) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  sender.send(to_host ? Op::cuMemcpyDtoHAsync_v2 : Op::cuMemcpyHtoDAsync_v2, wire::HostCopy{device, bytes},
              to_host ? wire::kBulkOut : wire::kBulkIn, piece->bulk.offset, bytes);
  return sender.error();
}

bool captured_with_piece(const Stream& stream, const void* host, u64 bytes) {
  return stream.capturing.load(std::memory_order_acquire) && needs_graph_piece(host, bytes);
}

CUresult send_pageable(CopySender& sender, u64 device, const void* host, u64 bytes, CopyCall call) {
  const auto* source = static_cast<const u8*>(host);
  if (bytes <= wire::kInlineCopyBytes) {
    sender.send(Op::cuMemcpyHtoDAsync_v2, wire::HostCopy{device, bytes}, 0, 0, 0, host,
                static_cast<u32>(bytes));
    return sender.error();
  }
  const u64 chunk = copy_chunk(bytes);
  std::atomic<u64> newest{0};
  run_copy(copy_thread_count(bytes), [&](u32 index, u32 count) {
    for (u64 at = index * chunk; at < bytes && !sender.failed(); at += count * chunk) {
      const u64 value = send_staged(sender, device + at, source + at, least(chunk, bytes - at));
      u64 before = newest.load(std::memory_order_relaxed);
      while (before < value && !newest.compare_exchange_weak(before, value)) {
      }
    }
  });
  if (!sender.failed() && call == CopyCall::synchronous && bytes > kReturnsEarly) sender.wait(newest.load());
  return sender.error();
}

CUresult receive_pinned(CopySender& sender, u64 offset, u64 device, u64 bytes, CopyCall call) {
  Session& session = sender.session();
  const bool stream_transport = !session.shared_memory();
  const u64 step = stream_transport ? kStreamChunk : bytes;
  // On shared memory the copy engine writes into the program's own bytes, and whoever waits for the stream
  // marks it: a mark a copy would cost the worker as much as the copy.
  const bool marks = stream_transport || call == CopyCall::synchronous;
  const u16 mark = marks ? mark_unless_captured(sender.stream()) : u16{0};
  u64 value = 0;
  for (u64 at = 0; at < bytes; at += step) {
    const u64 here = least(step, bytes - at);
    value = sender.send(Op::cuMemcpyDtoHAsync_v2, wire::HostCopy{device + at, here},
                        static_cast<u16>(wire::kBulkOut | mark), offset + at, here);
    if (value == 0) return sender.error();
  }
  if (stream_transport && mark != 0)
    PendingReturns::instance().add(session, offset, bytes, sender.completion(value));
  if (call == CopyCall::synchronous) sender.wait(value);
  return sender.error();
}

// The chunks index, index + count, ... of a copy to pageable memory: up to kCopyDepth are on their way while
// the oldest that has arrived is copied out.
void receive_chunks(CopySender& sender, const ReturnPiece& piece, u8* host, u64 device, u64 bytes, u32 index,
                    u32 count) {
  const u64 chunk = copy_chunk(bytes);
  const u64 chunks = (bytes + chunk - 1) / chunk;
  if (index >= chunks) return;
  const u64 mine = (chunks - index + count - 1) / count;
  u64 values[kCopyDepth] = {};
  u64 issued = 0;
  const auto place = [&](u64 turn) { return turn % kCopyDepth * chunk; };
  const auto at = [&](u64 turn) { return (index + turn * count) * chunk; };
  const auto issue = [&] {
    const u64 size = least(chunk, bytes - at(issued));
    values[issued % kCopyDepth] =
        sender.send(Op::cuMemcpyDtoHAsync_v2, wire::HostCopy{device + at(issued), size},
                    wire::kBulkOut | wire::kMark, piece.offset() + place(issued), size);
    return values[issued++ % kCopyDepth] != 0;
  };
  bool going = true;
  while (going && issued < least(mine, kCopyDepth)) going = issue();
  for (u64 turn = 0; turn < issued; ++turn) {
    // Also after a failure: the piece must not be reused while the worker may still write to it.
    if (values[turn % kCopyDepth] == 0 || !sender.wait(values[turn % kCopyDepth])) {
      going = false;
      continue;
    }
    if (!going || sender.failed()) continue;
    const u64 size = least(chunk, bytes - at(turn));
    (bytes >= kStreamFrom ? copy_streaming : [](void* to, const void* from, size_t n) {
      std::memcpy(to, from, n);
    })(host + at(turn), piece.address() + place(turn), size);
    if (issued < mine) going = issue();
  }
}

CUresult receive_pageable(CopySender& sender, void* host, u64 device, u64 bytes) {
  // One piece a thread, all taken here: only this thread has a context in which new memory can be registered.
  const u32 threads = copy_thread_count(bytes);
  std::deque<ReturnPiece> pieces;
  for (u32 i = 0; i < threads; ++i)
    if (const ReturnPiece& piece = pieces.emplace_back(sender.session(), bytes); !piece) return piece.error();
  run_copy(threads, [&](u32 index, u32 count) {
    receive_chunks(sender, pieces[index], static_cast<u8*>(host), device, bytes, index, count);
  });
  return sender.error();
}

// Both sides are in this process. In the stream's order, which here means after all that is on it.
CUresult copy_on_host(u64 destination, u64 source, u64 bytes, Stream& stream) {
  if (const CUresult result = refuse_capturing(stream); result != CUDA_SUCCESS) return result;
  const CUresult result = wait_for_stream(stream);
  if (result != CUDA_SUCCESS) return result;
  std::memmove(reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), bytes);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult wait_for_stream(Stream& stream) {
  Session& session = *Session::current();
  if (finished(session, stream)) return session.take_async_error();
  Call call(Op::stream_mark);
  call.on(stream);
  call.mark();
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  return session.wait_word(stream.handle.index(), call.ticket() + 1);
}

CUresult wait_for_both(Context& one, Context& other) {
  Session& session = *Session::current();
  const CUresult result = session.synchronize(one);
  return result == CUDA_SUCCESS ? session.synchronize(other) : result;
}

bool is_pinned(u64 address) {
  return Session::current()->pinned_offset(reinterpret_cast<const void*>(address), 1) != 0;
}

Side side_of(u64 address) {
  if (is_pinned(address)) return Side::pinned;
  return address_space().is_device(address) ? Side::device : Side::pageable;
}

CUresult check_device_range(u64 address, u64 bytes) {
  switch (address_space().cover(address, bytes)) {
    case AddressSpace::Cover::whole:
      return CUDA_SUCCESS;
    case AddressSpace::Cover::partly:
      return CUDA_ERROR_INVALID_VALUE;
    case AddressSpace::Cover::unknown:
      break;
  }
  Call call(Op::cuMemGetAddressRange_v2);
  call.put<u64>(address);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS)
    return result == CUDA_ERROR_NOT_FOUND ? CUDA_ERROR_INVALID_VALUE : result;
  const u64 base = call.get<u64>();
  const u64 size = call.get<u64>();
  return address - base < size && bytes <= size - (address - base) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

Stream* copy_stream(CUstream stream, CopyCall call, CUresult& error) {
  Stream* resolved = resolve_stream(stream, error);
  if (resolved == nullptr) return nullptr;
  error = CUDA_SUCCESS;
  // Synchronous copies are not among the calls that a capture elsewhere forbids (capture.hpp).
  if (call == CopyCall::synchronous) error = refuse_capturing(*resolved);
  if (error == CUDA_SUCCESS) error = check_legacy(*resolved);
  return error == CUDA_SUCCESS ? resolved : nullptr;
}

CUresult copy_to_device(u64 device, const void* host, u64 bytes, Stream& stream, CopyCall call) {
  Session* session = Session::current();
  if (bytes == 0) return session->failed();
  if (host == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (side_of(device) == Side::pinned)
    return copy_on_host(device, reinterpret_cast<u64>(host), bytes, stream);
  if (const CUresult result = check_device_range(device, bytes); result != CUDA_SUCCESS) return result;
  CopySender sender(*session, stream);
  profile_bytes(bytes, 0);
  if (captured_with_piece(stream, host, bytes)) return capture_copy(sender, device, host, bytes, false);
  if (const u64 offset = session->pinned_offset(host, bytes); offset != 0)
    return send_pinned(sender, device, offset, bytes, call);
  return send_pageable(sender, device, host, bytes, call);
}

CUresult copy_to_host(void* host, u64 device, u64 bytes, Stream& stream, CopyCall call) {
  Session* session = Session::current();
  if (bytes == 0) return session->failed();
  if (host == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (side_of(device) == Side::pinned)
    return copy_on_host(reinterpret_cast<u64>(host), device, bytes, stream);
  if (const CUresult result = check_device_range(device, bytes); result != CUDA_SUCCESS) return result;
  CopySender sender(*session, stream);
  profile_bytes(0, bytes);
  if (captured_with_piece(stream, host, bytes)) return capture_copy(sender, device, host, bytes, true);
  if (const u64 offset = session->pinned_offset(host, bytes); offset != 0)
    return receive_pinned(sender, offset, device, bytes, call);
  return receive_pageable(sender, host, device, bytes);
}

CUresult copy_on_device(u64 destination, u64 source, u64 bytes, Stream& stream, CopyCall call) {
  Session* session = Session::current();
  if (bytes == 0) return session->failed();
  for (const u64 address : {destination, source})
    if (const CUresult result = check_device_range(address, bytes); result != CUDA_SUCCESS) return result;
  CopySender sender(*session, stream);
  const bool wait = call == CopyCall::synchronous &&
                    (address_space().synchronizes(destination) || address_space().synchronizes(source));
  const u64 value = sender.send(Op::cuMemcpyDtoDAsync_v2, wire::DeviceCopy{destination, source, bytes},
                                static_cast<u16>(wait ? wire::kMark : 0));
  if (wait && value != 0) sender.wait(value);
  return sender.error();
}

CUresult copy_unified(u64 destination, u64 source, u64 bytes, Stream& stream, CopyCall call) {
  const bool to_device = side_of(destination) == Side::device;
  const bool from_device = side_of(source) == Side::device;
  if (to_device && from_device) {
    return copy_on_device(destination, source, bytes, stream, call);
  }
  if (to_device)
    return copy_to_device(destination, reinterpret_cast<const void*>(source), bytes, stream, call);
  if (from_device) return copy_to_host(reinterpret_cast<void*>(destination), source, bytes, stream, call);
  if (bytes == 0) return CUDA_SUCCESS;
  if (destination == 0 || source == 0) return CUDA_ERROR_INVALID_VALUE;
  return copy_on_host(destination, source, bytes, stream);
}

}  // namespace gpupool::guest
