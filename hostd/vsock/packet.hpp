// virtio-vsock's packet header and numbers (Virtual I/O Device 1.2, 5.10.6).
#pragma once

#include <sys/uio.h>

#include <span>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::vsock {

inline constexpr u64 kHostCid = 2;
inline constexpr u16 kStream = 1;
inline constexpr u32 kTransportReset = 0;  // an event, 5.10.6.7

enum class Op : u16 {
  invalid = 0,
  request = 1,
  response = 2,
  reset = 3,
  shutdown = 4,
  data = 5,
  credit_update = 6,
  credit_request = 7,
};

// Flags of a shutdown: the sender will not receive, will not send.
inline constexpr u32 kNoReceive = 1, kNoSend = 2, kNeither = 3;

struct [[gnu::packed]] Header {
  u64 source_cid = 0;
  u64 destination_cid = 0;
  u32 source_port = 0;
  u32 destination_port = 0;
  u32 bytes = 0;
  u16 type = 0;
  u16 op = 0;
  u32 flags = 0;
  u32 buffer = 0;     // buf_alloc: how much the sender can hold of this connection
  u32 forwarded = 0;  // fwd_cnt: how much of it has left that buffer, ever
};
inline constexpr size_t kHeaderBytes = 44;
static_assert(sizeof(Header) == kHeaderBytes);

// Copies between `bytes` and the first parts; how many bytes there were room for.
size_t gather(std::span<const iovec> parts, void* bytes, size_t count);
size_t scatter(std::span<const iovec> parts, const void* bytes, size_t count);
// Appends the parts without their first `skip` bytes, at most `count` bytes of them. How many it were.
size_t cut(std::span<const iovec> parts, size_t skip, size_t count, std::vector<iovec>& out);

}  // namespace gpupool::vsock
