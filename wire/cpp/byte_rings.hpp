// A stream of bytes each way in a slot of a virtual machine's window: OpenGL's, whose protocol is a stream
// and nothing else (docs/opengl.md). One thread a side. Who sleeps says so, and is woken by a byte over
// vsock.
//
// The slot begins with a page of counters, then the bytes to the host, then those to the guest. Each side
// writes its own counters alone, and believes none of the other's: what cannot be is `broken`, and nothing is
// read or written for it. The guest's side of a window is write-combining memory (docs/data-plane.md), so
// there are fences where ordinary memory needs none, and no locked operation.
#pragma once

#include <algorithm>
#include <atomic>
#include <span>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u64 kByteRingsBytes = 4u << 20;  // of a slot; hostd/core/window.py has the same
inline constexpr u64 kByteRingsPage = 4096;

// Of one direction. Nobody writes into a cache line of the other side's.
struct RingWords {
  alignas(64) std::atomic<u64> written{0};  // bytes so far, by the writer
  std::atomic<u32> writer_sleeps{0};        // until there is room
  alignas(64) std::atomic<u64> read{0};     // by the reader
  std::atomic<u32> reader_sleeps{0};        // until there is something
};
static_assert(sizeof(RingWords) == 128);

class ByteRing {
 public:
  ByteRing(RingWords& words, u8* bytes, u64 capacity) : words_(words), bytes_(bytes), capacity_(capacity) {}

  // The other side's counter was one that it cannot have.
  [[nodiscard]] bool broken() const { return broken_; }

 protected:
  // From a position to as far as it goes in one piece.
  [[nodiscard]] std::span<u8> piece(u64 position, u64 size) const {
    const u64 at = position % capacity_;
    return {bytes_ + at, std::min(size, capacity_ - at)};
  }
  // Whether the other side sleeps, after a counter of ours was changed: it has then to be told.
  static bool must_tell(const std::atomic<u32>& sleeps) {
    __builtin_ia32_mfence();  // the counter is there before we look, as the other side looks after it has
                              // said
    return sleeps.load(std::memory_order_relaxed) != 0;
  }
  static void say(std::atomic<u32>& sleeps, bool value) {
    sleeps.store(value ? 1 : 0, std::memory_order_release);
    __builtin_ia32_mfence();
  }

  RingWords& words_;
  u8* bytes_;
  u64 capacity_;
  bool broken_ = false;
};

class RingWriter : public ByteRing {
 public:
  using ByteRing::ByteRing;

  // Where the next bytes go, as far as there is room in one piece.
  std::span<u8> room() {
    const u64 read = words_.read.load(std::memory_order_acquire);
    broken_ = broken_ || written_ - read > capacity_;
    return broken_ ? std::span<u8>{} : piece(written_, capacity_ - (written_ - read));
  }
  // So many bytes of it are there. True when the reader sleeps.
  bool publish(u64 size) {
    written_ += size;
    __builtin_ia32_sfence();  // the bytes before their number
    words_.written.store(written_, std::memory_order_release);
    return must_tell(words_.reader_sleeps);
  }
  // Whether the reader has all of it.
  [[nodiscard]] bool taken() const { return words_.read.load(std::memory_order_acquire) == written_; }
  // Said before one looks for room a last time and sleeps, and unsaid afterwards.
  void sleep(bool value) { say(words_.writer_sleeps, value); }

 private:
  u64 written_ = 0;
};

class RingReader : public ByteRing {
 public:
  using ByteRing::ByteRing;

  // What has come, as far as it is in one piece. The other side may still write into it: copy first.
  std::span<u8> there() {
    const u64 written = words_.written.load(std::memory_order_acquire);
    __builtin_ia32_lfence();  // the number before the bytes
    broken_ = broken_ || written - read_ > capacity_;
    return broken_ ? std::span<u8>{} : piece(read_, written - read_);
  }
  // So many bytes of it are not needed any more. True when the writer sleeps.
  bool consume(u64 size) {
    read_ += size;
    words_.read.store(read_, std::memory_order_release);
    return must_tell(words_.writer_sleeps);
  }
  void sleep(bool value) { say(words_.reader_sleeps, value); }

 private:
  u64 read_ = 0;
};

// A slot of kByteRingsBytes or more, in whole pages, which begins as zeros.
struct ByteRings {
  explicit ByteRings(u8* slot, u64 size)
      : up(reinterpret_cast<RingWords*>(slot)),
        down(up + 1),
        bytes(slot + kByteRingsPage),
        capacity((size - kByteRingsPage) / 2 / 64 * 64) {}

  [[nodiscard]] RingWriter to_host() const { return {*up, bytes, capacity}; }
  [[nodiscard]] RingReader from_guest() const { return {*up, bytes, capacity}; }
  [[nodiscard]] RingWriter to_guest() const { return {*down, bytes + capacity, capacity}; }
  [[nodiscard]] RingReader from_host() const { return {*down, bytes + capacity, capacity}; }

  RingWords* up;
  RingWords* down;
  u8* bytes;
  u64 capacity;  // of each direction
};

}  // namespace gpupool::wire
