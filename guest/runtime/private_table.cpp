#include "guest/runtime/private_table.hpp"

#include <atomic>
#include <cstring>

#include "guest/runtime/manual/copy_threads.hpp"
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

constexpr u64 kCopyPart = 128u << 10;
constexpr u64 kStreamFrom = 8u << 20;  // as copies of CUDA's (copy_linear.cpp)

// One copy, of which several threads take parts until there are no more.
class PartedCopy {
 public:
  PartedCopy(void* to, const void* from, u64 bytes)
      : to_(static_cast<u8*>(to)), from_(static_cast<const u8*>(from)), bytes_(bytes) {}
  void take_parts() {
    const auto move = bytes_ >= kStreamFrom ? copy_streaming : plain;
    for (u64 at = 0; (at = next_.fetch_add(kCopyPart, std::memory_order_relaxed)) < bytes_;)
      move(to_ + at, from_ + at, bytes_ - at < kCopyPart ? bytes_ - at : kCopyPart);
  }

 private:
  static void plain(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

  u8* to_;
  const u8* from_;
  u64 bytes_;
  std::atomic<u64> next_{0};
};

void copy(void* to, const void* from, u64 bytes) {
  const u32 threads = copy_thread_count(bytes);
  if (threads <= 1) {
    std::memcpy(to, from, bytes);
    return;
  }
  PartedCopy parts(to, from, bytes);
  run_copy(threads, [&](u32, u32) { parts.take_parts(); });
}

i32 receive(const PrivateMessage& message, u64 ticket, void* answer, u32 room, u32& size) {
  wire::ReplyBox* box = nullptr;
  spin(*Session::current(), ticket);
  const CUresult result = Session::current()->wait_reply(ticket, box);
  if (result != CUDA_SUCCESS) return result;
  size = box->size < room ? box->size : room;
  if ((message.flags & wire::kAnswerInBulk) == 0)
    std::memcpy(answer, box->payload, size < wire::kReplyBytes ? size : wire::kReplyBytes);
  return box->status;
}

// Whether the answer is that everything is there.
bool is_whole(const PrivateMessage& message, i32 result, const void* answer, u32 size) {
  u64 there = 0;
  if (result != CUDA_SUCCESS || size < sizeof there) return false;
  std::memcpy(&there, answer, sizeof there);
  return there == message.copy_bytes;
}

// Helpers are woken while we wait: afterwards that would take as long as they save. They do not wait for
// long, and where the last wait was long they are not woken before its end.
i32 receive_and_copy(const PrivateMessage& message, u64 ticket, void* answer, u32 room, u32& size) {
  constexpr u64 kPatienceNs = 1'000'000;
  constexpr u32 kThere = 1, kNothing = 2;
  thread_local u64 last_ns = 0;
  const u8* const from = Session::current()->window().base + message.bulk_offset;
  const u64 start = wire::monotonic_ns();
  const u32 threads = copy_thread_count(message.copy_bytes);
  if (threads <= 1 || last_ns > kPatienceNs) {
    const i32 result = receive(message, ticket, answer, room, size);
    last_ns = wire::monotonic_ns() - start;
    if (is_whole(message, result, answer, size)) copy(message.copy_to, from, message.copy_bytes);
    return result;
  }
  PartedCopy parts(message.copy_to, from, message.copy_bytes);
  std::atomic<u32> state{0};
  i32 result = CUDA_SUCCESS;
  run_copy(threads, [&](u32 index, u32) {
    if (index == 0) {
      result = receive(message, ticket, answer, room, size);
      last_ns = wire::monotonic_ns() - start;
      state.store(is_whole(message, result, answer, size) ? kThere : kNothing, std::memory_order_release);
    }
    while (state.load(std::memory_order_acquire) == 0 && wire::monotonic_ns() - start < kPatienceNs)
      for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
    if (state.load(std::memory_order_acquire) == kThere) parts.take_parts();
  });
  return result;
}

i32 wait(const PrivateMessage& message, u64& ticket, void* answer, u32 room, u32& size) {
  size = 0;
  if (const i32 result = post(message, wire::kReply, ticket); result != CUDA_SUCCESS) return result;
  count_wait(static_cast<wire::Function>(message.function));
  return message.copy_bytes == 0 ? receive(message, ticket, answer, room, size)
                                 : receive_and_copy(message, ticket, answer, room, size);
}

bool take(u64 bytes, WindowPiece& piece) {
  Session* session = Session::current();
  if (session == nullptr) return false;
  CUresult error = CUDA_SUCCESS;
  // A frame of 1920x1080 still fits: memory of the heap's goes back to the system, and is cleared each time.
  constexpr u64 kMostStaged = 12u << 20;
  const Bulk bulk =
      bytes <= kMostStaged ? session->stage(bytes) : session->heap_allocate(bytes, false, error);
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
                          .use_opengl = use_opengl,
                          .copy = copy};

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
