// What every copy needs: slots filled directly, from the calling thread or from one that helps it, and pieces
// of the window for data that comes back.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstring>

#include "guest/runtime/session.hpp"
#include "wire/cpp/copy_message.hpp"
#include "wire_functions.hpp"  // generated: enum class wire::Function

namespace gpupool::guest {

inline constexpr u64 kCopyChunk = 1u << 20;  // smaller ones cost throughput, larger ones latency (measured)
// Copies that are over before chunks of that size could overlap are cut finer.
inline constexpr u64 kFineCopyChunk = 256 << 10;
inline constexpr u64 kFineCopiesBelow = 4u << 20;
constexpr u64 copy_chunk(u64 bytes) {
  return bytes < kFineCopiesBelow ? kFineCopyChunk : kCopyChunk;
}
inline constexpr u32 kCopyDepth = 4;  // chunks that one thread keeps in flight

// Puts copies on one stream. Made in the thread of the call, so that helpers act in its context.
class CopySender {
 public:
  CopySender(Session& session, Stream& stream);

  // Sends one slot; returns its ticket + 1, or 0 when the session has failed (then error() says why).
  template <typename Payload>
  u64 send(wire::Function function, const Payload& payload, u16 flags, u64 bulk_offset = 0, u64 bulk_size = 0,
           const void* data = nullptr, u32 data_bytes = 0) {
    static_assert(sizeof(Payload) <= wire::kInlineBytes);
    const Claim claim = session_.claim();
    if (claim.slot == nullptr) [[unlikely]] {
      refuse();
      return 0;
    }
    wire::Slot& slot = *claim.slot;
    slot.function = static_cast<u16>(function);
    slot.flags = flags;
    slot.context = context_;
    slot.stream = stream_.handle;
    slot.bulk_offset = bulk_offset;
    slot.bulk_size = bulk_size;
    slot.inline_size = static_cast<u32>(sizeof payload) + data_bytes;
    std::memcpy(slot.payload, &payload, sizeof payload);
    if (data_bytes != 0) std::memcpy(slot.payload + sizeof payload, data, data_bytes);
    session_.publish(claim, &stream_);
    return claim.ticket + 1;
  }

  // Waits until the stream's word holds `value`; false when the copy must end, with error() set.
  bool wait(u64 value);
  // Says what ended the copy; the first report counts. Any thread.
  void fail(CUresult error);
  CUresult error() const { return error_.load(std::memory_order_acquire); }
  bool failed() const { return error() != CUDA_SUCCESS; }
  Completion completion(u64 value) const { return Completion{stream_.handle.index(), value}; }

  Session& session() { return session_; }
  Stream& stream() { return stream_; }

 private:
  void refuse();

  Session& session_;
  Stream& stream_;
  u32 context_;
  std::atomic<CUresult> error_{CUDA_SUCCESS};
};

// A piece of pinned window memory for data on its way to pageable memory. Kept from one copy to the next, and
// apart from the staging area: such a piece is held until the GPU has got to the copy, and nobody else should
// wait for that.
class ReturnPiece {
 public:
  // At least min(bytes, kCopyChunk * kCopyDepth) bytes; empty when the window is full.
  ReturnPiece(Session& session, u64 bytes);
  ~ReturnPiece();
  ReturnPiece(const ReturnPiece&) = delete;
  ReturnPiece& operator=(const ReturnPiece&) = delete;

  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(bulk_); }
  // Why it is empty.
  [[nodiscard]] CUresult error() const { return error_; }
  [[nodiscard]] u64 offset() const { return bulk_.offset; }
  [[nodiscard]] const u8* address() const { return bulk_.address; }

 private:
  Session& session_;
  bool small_;
  Bulk bulk_;
  CUresult error_ = CUDA_SUCCESS;
};

}  // namespace gpupool::guest
