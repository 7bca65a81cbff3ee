#include "hostd/worker/exchange.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "hostd/worker/log.hpp"
#include "wire/cpp/descriptor_passing.hpp"

namespace gpupool::worker {
namespace {

constexpr int kAnswerWithinMs = 5000;

}  // namespace

bool Exchange::ask(ExchangeMessage& message, int fd, Descriptor& received) {
  if (connection_.get() < 0) return false;
  message.sequence = ++sequence_;
  const u64 sequence = message.sequence;
  const bool sent = wire::send_with_descriptor(connection_.get(), &message, sizeof message, fd,
                                               MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof message;
  // An answer that came too late for an earlier request is skipped.
  while (sent && receive(message, received))
    if (message.sequence == sequence) return true;
  log(LogLevel::warning, "hostd does not answer: nothing can be shared with other sessions",
      sent ? "" : std::strerror(errno));
  return false;
}

bool Exchange::receive(ExchangeMessage& answer, Descriptor& received) {
  pollfd readable{connection_.get(), POLLIN, 0};
  if (poll(&readable, 1, kAnswerWithinMs) <= 0) return false;
  int fd = -1;
  const ssize_t got =
      wire::receive_with_descriptor(connection_.get(), &answer, sizeof answer, fd, MSG_DONTWAIT);
  received = Descriptor(fd);
  if (got != sizeof answer) return false;
  return answer.magic == ExchangeMessage::kMagic && answer.size <= sizeof answer.payload;
}

CUresult Exchange::put(wire::ShareKind kind, std::span<const u8> payload, int fd, wire::ShareToken& token) {
  ExchangeMessage message;
  if (payload.size() > sizeof message.payload) return CUDA_ERROR_INVALID_VALUE;
  message.operation = ExchangeMessage::kPut;
  message.kind = static_cast<u32>(kind);
  message.size = static_cast<u32>(payload.size());
  if (!payload.empty()) std::memcpy(message.payload, payload.data(), payload.size());
  Descriptor none;
  if (!ask(message, fd, none)) return CUDA_ERROR_OPERATING_SYSTEM;
  token = message.token;
  return message.operation == ExchangeMessage::kOk ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult Exchange::get(wire::ShareKind kind, const wire::ShareToken& token, std::vector<u8>& payload,
                       Descriptor& fd) {
  ExchangeMessage message;
  message.operation = ExchangeMessage::kGet;
  message.kind = static_cast<u32>(kind);
  message.token = token;
  if (!ask(message, -1, fd)) return CUDA_ERROR_OPERATING_SYSTEM;
  if (message.operation != ExchangeMessage::kOk) return CUDA_ERROR_INVALID_HANDLE;
  payload.assign(message.payload, message.payload + message.size);
  return CUDA_SUCCESS;
}

void Exchange::drop(const wire::ShareToken& token) {
  ExchangeMessage message;
  message.operation = ExchangeMessage::kDrop;
  message.token = token;
  Descriptor none;
  // Without an answer there is nothing more to take back: what is left goes with the session.
  static_cast<void>(ask(message, -1, none));
}

}  // namespace gpupool::worker
