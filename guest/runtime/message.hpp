// Building a message and reading its answer, for every function that is not on the launch path. Generated
// stubs and hand-written functions use this; launches fill their slot directly (manual/launch.cpp).
//
// Encoding: values one after the other, each at a multiple of min(its size, 8); arrays are a u64 count and
// then the elements at a multiple of 8. wire/cpp/reader.hpp is the other end.
#pragma once

#include <cuda.h>

#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "guest/runtime/session.hpp"
#include "guest/runtime/thread_state.hpp"
#include "wire_functions.hpp"  // generated: enum class wire::Function

namespace gpupool::guest {

class Call {
 public:
  explicit Call(wire::Function function) : function_(function) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call();  // releases its bulk pieces

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    std::memcpy(grow(sizeof(T), sizeof(T) < 8 ? sizeof(T) : 8), &value, sizeof(T));
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put_array(const T* values, u64 count) {
    put(count);
    if (count != 0) std::memcpy(grow(count * sizeof(T), 8), values, count * sizeof(T));
  }
  // A C string, sent with its length and without its terminator. Null is sent as empty.
  void put_string(const char* text) { put_array(text, text == nullptr ? 0 : std::strlen(text)); }

  // The stream this call puts work on. Sets the header's stream and, on sending, Stream::last_work.
  void on(Stream& stream) { stream_ = &stream; }
  // Asks for ticket + 1 in the stream's word when this call's work is done. Not while it is being captured.
  void mark() { flags_ |= wire::kMark; }
  // Attaches a piece of the window that the caller staged (kBulkIn) or wants filled (kBulkOut). The payload
  // itself then must fit inline.
  void attach(u64 offset, u64 size, u16 flag) {
    bulk_offset_ = offset;
    bulk_size_ = size;
    flags_ |= flag;
  }

  // Says that the answer may take up to `bytes`; needed when that is more than wire::kReplyBytes.
  void expect_answer(u64 bytes) { answer_capacity_ = bytes; }

  // For calls that allocate, or whose answer has nothing to do with memory: freed memory that is kept
  // (manual/kept_memory.hpp) stays so.
  void leave_kept() { leave_kept_ = true; }

  // Sends without waiting. An error the worker meets surfaces at the next call that waits.
  CUresult send();
  // Sends and waits for the worker's answer; afterwards get() reads the results. Returns the driver's result,
  // or a pending asynchronous error if that came first.
  CUresult wait();
  // The ticket that send() or wait() used.
  u64 ticket() const { return ticket_; }

  // Reads the next result of wait(). A short answer (a protocol violation) gives zeroes and fails the
  // session.
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value{};
    take(&value, sizeof(T), sizeof(T) < 8 ? sizeof(T) : 8);
    return value;
  }
  // Copies at most `capacity` elements of a result array to `out` and returns how many the worker sent.
  template <typename T>
  u64 get_array(T* out, u64 capacity) {
    const u64 count = get<u64>();
    const u8* data = take_bytes(count * sizeof(T), 8);
    if (data != nullptr && out != nullptr)
      std::memcpy(out, data, (count < capacity ? count : capacity) * sizeof(T));
    return data == nullptr ? 0 : count;
  }

 private:
  u8* grow(u64 bytes, u64 alignment);
  void take(void* out, u64 bytes, u64 alignment);
  const u8* take_bytes(u64 bytes, u64 alignment);
  CUresult dispatch(u16 extra_flags);

  wire::Function function_;
  u16 flags_ = 0;
  Stream* stream_ = nullptr;
  u64 bulk_offset_ = 0, bulk_size_ = 0;
  u64 ticket_ = 0;
  u64 used_ = 0;
  alignas(8) u8 inline_[wire::kInlineBytes];
  std::vector<u8> spill_;  // the whole payload once it outgrows inline_
  u64 answer_capacity_ = 0;
  bool leave_kept_ = false;
  Bulk payload_bulk_;
  Bulk answer_bulk_;
  std::vector<u8> answer_;
  u64 answer_used_ = 0;
};

}  // namespace gpupool::guest
