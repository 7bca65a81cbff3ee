#include "guest/runtime/private_table.hpp"

#include <atomic>
#include <cstring>

#include "guest/runtime/session.hpp"
#include "guest/runtime/statistics.hpp"
#include "guest/runtime/thread_state.hpp"
#include "wire/cpp/futex.hpp"
#include "wire_functions.hpp"

namespace gpupool::guest {
namespace {

i32 post(const PrivateMessage& message, u16 extra_flags, u64& ticket) {
  Session* session = Session::current();
  if (session == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
  const Claim claim = session->claim();
  if (claim.slot == nullptr) {
    const CUresult failed = session->failed();
    return failed != CUDA_SUCCESS ? failed : CUDA_ERROR_OUT_OF_MEMORY;
  }
  ticket = claim.ticket;
  wire::Slot& slot = *claim.slot;
  slot.function = message.function;
  slot.flags = static_cast<u16>(message.flags | extra_flags);
  slot.context = 0;  // OpenGL has no business with the CUDA context of this thread, which may be going
  slot.bulk_offset = message.bulk_offset;
  slot.bulk_size = message.bulk_size;
  slot.inline_size = message.payload_bytes;
  std::memcpy(slot.payload, message.payload, message.payload_bytes);
  session->publish(claim);
  return CUDA_SUCCESS;
}

// OpenGL's answers wait for the GPU more often than not, and waking a thread costs more than reading a small
// picture. Longer than other answers, as long as a wait for a stream (waiting.cpp).
void spin(const Session& session, u64 ticket) {
  constexpr u64 kSpinNs = 2'000'000;
  if (!wire::Backoff::spare_cores()) return;
  const wire::ReplyBox& box = session.window().reply(thread_index());
  const u64 start = wire::monotonic_ns();
  while (box.done.load(std::memory_order_acquire) != ticket + 1 && wire::monotonic_ns() - start < kSpinNs)
    for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
}

i32 connect() {
  return Session::connect();
}

i32 send(const PrivateMessage& message, u64& ticket) {
  return post(message, 0, ticket);
}

i32 wait(const PrivateMessage& message, u64& ticket, void* answer, u32 room, u32& size) {
  size = 0;
  if (const i32 result = post(message, wire::kReply, ticket); result != CUDA_SUCCESS) return result;
  count_wait(static_cast<wire::Function>(message.function));
  wire::ReplyBox* box = nullptr;
  spin(*Session::current(), ticket);
  const CUresult result = Session::current()->wait_reply(ticket, box);
  if (result != CUDA_SUCCESS) return result;
  size = box->size < room ? box->size : room;
  if ((message.flags & wire::kAnswerInBulk) == 0)
    std::memcpy(answer, box->payload, size < wire::kReplyBytes ? size : wire::kReplyBytes);
  return box->status;
}

bool take(u64 bytes, WindowPiece& piece) {
  Session* session = Session::current();
  if (session == nullptr) return false;
  CUresult error = CUDA_SUCCESS;
  const Bulk bulk =
      bytes <= Session::kMaxStaging ? session->stage(bytes) : session->heap_allocate(bytes, false, error);
  piece = WindowPiece{bulk.offset, bulk.size, bulk.address};
  return static_cast<bool>(bulk);
}

void give_back(const WindowPiece& piece, u64 ticket) {
  Session* session = Session::current();
  if (session != nullptr)
    session->release(Bulk{piece.offset, piece.size, piece.address}, Completion{0, ticket + 1});
}

bool idle() {
  const Session* session = Session::current();
  if (session == nullptr) return true;
  const wire::Control& control = session->window().control();
  return control.head.load(std::memory_order_relaxed) == control.tail.load(std::memory_order_relaxed);
}

std::atomic<FlushCurrent> g_flush_current{nullptr};

void use_opengl(FlushCurrent flush) {
  g_flush_current.store(flush, std::memory_order_release);
}

const PrivateTable kTable{.connect = connect,
                          .send = send,
                          .wait = wait,
                          .take = take,
                          .give_back = give_back,
                          .idle = idle,
                          .use_opengl = use_opengl};

}  // namespace

FlushCurrent opengl_of_program() {
  return g_flush_current.load(std::memory_order_acquire);
}

}  // namespace gpupool::guest

// NOLINTNEXTLINE(readability-identifier-naming): an exported symbol, named as such
extern "C" __attribute__((visibility("default"), used)) const gpupool::guest::PrivateTable*
gpupool_private_table(gpupool::u32 version) {
  return version == gpupool::guest::kPrivateTableVersion ? &gpupool::guest::kTable : nullptr;
}
