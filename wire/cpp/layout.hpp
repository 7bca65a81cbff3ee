// The window: the memory that client and worker both map (or, over a stream transport, that each maps for
// itself and the transport mirrors). This file is the protocol between the two: every offset, slot and word.
//
// Invariants
//  * A slot is written by one client thread between taking its ticket and storing `sequence`, and read by the
//    worker after it has seen `sequence`; the worker copies it out once and checks only the copy.
//  * Word i belongs to the stream with handle index i. It holds (ticket + 1) of the latest marked slot of
//  that
//    stream whose work has completed on the GPU. Tickets grow over the whole session, so words only grow.
//  * Reply box i belongs to the client thread with index i; one call at most is outstanding in it.
//  * Offsets in slots are relative to the window's base. The base address is the same in both processes on
//    shared memory, so host pointers into the window are also valid as they are.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u64 kWindowBase = 0x2000'0000'0000;  // first candidate; the client proposes another if taken
inline constexpr u64 kWindowBaseStep = 0x0010'0000'0000;  // 64 GiB between candidates
inline constexpr u32 kWindowBaseTries = 64;

inline constexpr u32 kRingSlots = 8192;
inline constexpr u32 kWords = 8192;    // streams of one session, also the highest stream index + 1
inline constexpr u32 kThreads = 1024;  // client threads that may wait at the same time
inline constexpr u32 kInlineBytes = 208;
inline constexpr u32 kReplyBytes = 4096 - 64;

enum SlotFlag : u16 {
  kReply = 1 << 0,    // the client waits in its reply box
  kMark = 1 << 1,     // once this slot's work is done on `stream`, store ticket + 1 into the stream's word
  kBulkIn = 1 << 2,   // [bulk_offset, +bulk_size) carries data from the client to the worker
  kBulkOut = 1 << 3,  // ... from the worker to the client: valid when the mark or the reply is
  kPayloadInBulk = 1 << 4,  // with kBulkIn: the payload is in the bulk piece, `payload` is unused
  kAnswerInBulk =
      1 << 5,  // with kBulkOut and kReply: the answer goes to the bulk piece, not into the reply box
};

struct alignas(64) Slot {
  std::atomic<u64> sequence;  // ticket + 1 once published
  u16 function;               // wire::Function
  u16 flags;                  // SlotFlag
  u32 thread;                 // index of the calling client thread and of its reply box
  u32 context;                // handle index of the context that is current in that thread; 0 for none
  u32 inline_size;            // bytes used in `payload`
  Handle stream;              // the stream this slot works on; 0 for none
  u64 bulk_offset;
  u64 bulk_size;
  u8 payload[kInlineBytes];
};
static_assert(sizeof(Slot) == 256);

struct alignas(64) Word {
  std::atomic<u64> value;
};
static_assert(sizeof(Word) == 64);

struct alignas(64) ReplyBox {
  std::atomic<u64> done;      // ticket + 1 of the slot that this answers; the low half is also the futex
  std::atomic<u32> sleeping;  // the client is, or is about to be, in futex wait on `done`
  i32 status;                 // CUresult
  u32 size;                   // bytes used in `payload`
  u8 pad[64 - 20];
  u8 payload[kReplyBytes];
};
static_assert(sizeof(ReplyBox) == 4096);

// Single-writer lines are kept apart so that the launch path shares no cache line with the worker.
struct Control {
  alignas(128) std::atomic<u64> tail;  // next ticket; client threads only
  alignas(128) std::atomic<u64> head;  // slots before this are executed and may be reused; worker only
  alignas(128) std::atomic<u32> worker_sleeping;  // worker is, or is about to be, in futex wait on `doorbell`
  std::atomic<u32> doorbell;
  alignas(
      128) std::atomic<u32> async_error;  // first CUresult of an asynchronous call since the client took it
  std::atomic<u32> async_function;        // wire::Function that failed
  std::atomic<u32> fatal_error;           // CUresult that ended the context for good; never cleared
  // Host functions: word 0, which belongs to no stream, holds (sequence << 32 | id) of the one that the
  // worker wants run; here the client says up to which sequence it has run them. One is outstanding at most.
  // Over a stream transport both travel by themselves, past the ring.
  alignas(128) std::atomic<u64> host_released;
};

// What kernels had printed, and which of their assertions failed, when the context was lost. The worker
// writes it before Control::fatal_error; the client reads it after. Printed text comes first.
inline constexpr u64 kFaultTextBytes = 1u << 19;
struct FaultOutput {
  u32 printed_bytes;
  u32 error_bytes;
  char text[kFaultTextBytes];
};

inline constexpr u64 kControlOffset = 0;
inline constexpr u64 kWordsOffset = 0x1'0000;
inline constexpr u64 kRingOffset = 0x10'0000;
inline constexpr u64 kReplyOffset = 0x30'0000;
inline constexpr u64 kFaultOutputOffset = 0x70'0000;
inline constexpr u64 kStagingOffset = 0x80'0000;
inline constexpr u64 kHeapOffset =
    0x200'0000;  // pinned memory and large payloads; before it: registered at start
inline constexpr u64 kStagingBytes = kHeapOffset - kStagingOffset;
inline constexpr u64 kWindowMinBytes = kHeapOffset + 0x200'0000;

static_assert(kWordsOffset + kWords * sizeof(Word) <= kRingOffset);
static_assert(kRingOffset + kRingSlots * sizeof(Slot) <= kReplyOffset);
static_assert(kReplyOffset + kThreads * sizeof(ReplyBox) <= kFaultOutputOffset);
static_assert(kFaultOutputOffset + sizeof(FaultOutput) <= kStagingOffset);
static_assert(sizeof(Control) <= kWordsOffset);

// Typed access to a mapped window. Does not own the mapping.
struct Window {
  u8* base = nullptr;
  u64 size = 0;

  [[nodiscard]] Control& control() const { return *reinterpret_cast<Control*>(base + kControlOffset); }
  [[nodiscard]] Word& word(u32 index) const { return reinterpret_cast<Word*>(base + kWordsOffset)[index]; }
  [[nodiscard]] Slot& slot(u64 ticket) const {
    return reinterpret_cast<Slot*>(base + kRingOffset)[ticket % kRingSlots];
  }
  [[nodiscard]] ReplyBox& reply(u32 thread) const {
    return reinterpret_cast<ReplyBox*>(base + kReplyOffset)[thread];
  }
  [[nodiscard]] FaultOutput& fault_output() const {
    return *reinterpret_cast<FaultOutput*>(base + kFaultOutputOffset);
  }
  // True when [offset, +bytes) lies in the part of the window that carries data (staging or heap).
  [[nodiscard]] bool holds_data(u64 offset, u64 bytes) const {
    return offset >= kStagingOffset && offset <= size && bytes <= size - offset;
  }
};

}  // namespace gpupool::wire
