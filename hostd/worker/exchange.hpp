// The worker's end of hostd's exchange: it leaves a driver's handle or a descriptor there and gets a token,
// or asks for what another session of its tenant has left. hostd/adapters/exchange.py is the other end.
#pragma once

#include <cuda.h>

#include <span>
#include <type_traits>
#include <vector>

#include "hostd/worker/parcels.hpp"
#include "wire/cpp/share.hpp"

namespace gpupool::worker {

struct ExchangeMessage {
  static constexpr u32 kMagic = 0x4747'5845;
  static constexpr u32 kPut = 1, kGet = 2, kDrop = 3;     // operations
  static constexpr u32 kOk = 0, kUnknown = 1, kFull = 2;  // statuses
  u32 magic = kMagic;
  u32 operation = 0;  // or the status, in an answer
  u64 sequence = 0;
  wire::ShareToken token;
  u32 kind = 0;
  u32 size = 0;  // of the payload
  u8 payload[256] = {};
};
static_assert(std::is_trivially_copyable_v<ExchangeMessage> && sizeof(ExchangeMessage) == 296);

class Exchange {
 public:
  // Takes the descriptor over; -1: there is no exchange.
  explicit Exchange(int fd = -1) : connection_(fd) {}

  // Leaves `payload` and, unless it is -1, `fd`. OUT_OF_MEMORY when this session has left too much there,
  // OPERATING_SYSTEM when hostd is gone.
  CUresult put(wire::ShareKind kind, std::span<const u8> payload, int fd, wire::ShareToken& token);
  // What is behind a token. INVALID_HANDLE when it is unknown, another tenant's or of another kind.
  CUresult get(wire::ShareKind kind, const wire::ShareToken& token, std::vector<u8>& payload, Descriptor& fd);
  // Takes back what this session has left.
  void drop(const wire::ShareToken& token);

 private:
  // Sends a request and waits for its answer, with a bound: the dispatcher is waiting.
  bool ask(ExchangeMessage& message, int fd, Descriptor& received);
  bool receive(ExchangeMessage& answer, Descriptor& received);

  Descriptor connection_;
  u64 sequence_ = 0;
};

}  // namespace gpupool::worker
