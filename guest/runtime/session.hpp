// The connection of this process to its worker: the ring, the staging area, waiting, errors, the device
// table. Everything in guest/runtime/manual is written against this file and message.hpp.
//
// Invariants: no thread of ours exists before connect(); after a fork the child's session is gone (current()
// is null there); once failed() is true every call returns that result and nothing waits any more.
#pragma once

#include <cuda.h>
#include <emmintrin.h>

#include <array>
#include <atomic>
#include <memory>
#include <span>

#include "guest/runtime/objects.hpp"
#include "wire/cpp/device_info.hpp"
#include "wire/cpp/layout.hpp"

namespace gpupool::guest {

// A piece of the window's data area that belongs to the client until released.
struct Bulk {
  u64 offset = 0;
  u64 size = 0;
  u8* address = nullptr;
  [[nodiscard]] explicit operator bool() const { return address != nullptr; }
};

// A slot that this thread has claimed and must publish. `slot` is null when the session has failed.
struct Claim {
  wire::Slot* slot = nullptr;
  u64 ticket = 0;
};

// What completes a piece of staging: the stream's word reaching `value`, or, for a null stream, the worker
// having executed every ticket below `value`.
struct Completion {
  u32 word = 0;
  u64 value = 0;
};

class Transport;
class Staging;
class Heap;

class Session {
 public:
  ~Session();
  // Connects once for the process; later calls return the first result. Called by cuInit.
  static CUresult connect();
  // Null before a successful connect() and in a forked child.
  static Session* current() { return g_current.load(std::memory_order_acquire); }

  // --- hot path
  // --------------------------------------------------------------------------------------------- Claims the
  // next slot with `thread`, `context` filled in and everything else zero but the payload. Waits only when
  // the ring is full. The caller fills it and publishes it without doing anything that can block between.
  Claim claim();
  // Makes the slot visible and wakes the worker if it sleeps. With a stream, records it as that stream's
  // newest work.
  void publish(const Claim& claim, Stream* stream = nullptr);

  // --- waiting
  // ---------------------------------------------------------------------------------------------- True when
  // everything put on the stream so far has completed on the GPU. Reads memory only.
  bool idle(const Stream& stream) const {
    return word(stream.handle.index()) >= stream.last_work.load(std::memory_order_acquire);
  }
  // Posts a mark on the stream (if it is not idle) and waits for it. Returns any error that surfaced.
  CUresult synchronize(Stream& stream);
  // The same for every stream of the context: all marks first, then all waits.
  CUresult synchronize(Context& context);
  // Waits until word `index` holds at least `value`; polls errors and the worker's life meanwhile.
  CUresult wait_word(u32 index, u64 value);
  // Waits for the answer to a slot published with kReply. The box is this thread's.
  CUresult wait_reply(u64 ticket, wire::ReplyBox*& box);
  u64 word(u32 index) const {
    const u64 value = window_.word(index).value.load(std::memory_order_acquire);
    order_reads();
    return value;
  }

  // --- data area
  // -------------------------------------------------------------------------------------------- Staging
  // memory of at most kMaxStaging bytes, first come first served; waits for older pieces to complete. A null
  // Bulk means that the session has failed.
  Bulk stage(u64 bytes);
  // Says when the piece may be reused. Must follow every stage(), in the thread that called it.
  void release(const Bulk& bulk, Completion completion);
  static constexpr u64 kMaxStaging = 4u << 20;
  // Memory of any size from the window's heap; not registered with the GPU (for large payloads), or
  // registered (for pinned memory). Null when the window is full.
  Bulk heap_allocate(u64 bytes, bool registered, CUresult& error);
  void heap_free(const Bulk& bulk);
  // Offset in the window if [address, +bytes) lies in its registered heap, else 0.
  u64 pinned_offset(const void* address, u64 bytes) const;

  // --- what kernels print (output.cpp)
  // Says that code has been loaded: whether it prints, the worker tells at the next wait.
  void image_loaded() { loads_.fetch_add(1, std::memory_order_release); }
  // Whether kernels may have printed something that is not here yet.
  bool may_print() const {
    return loads_.load(std::memory_order_acquire) != silent_loads_.load(std::memory_order_relaxed);
  }
  // Writes it to the program's standard output. `word` is that of a stream which has been waited for. No wait
  // and no reply may be outstanding in this thread.
  void take_output(u32 word);

  // --- errors
  // ----------------------------------------------------------------------------------------------- The
  // result that every call must now return (worker gone, context faulted), or CUDA_SUCCESS. One load.
  CUresult failed() const { return static_cast<CUresult>(failed_.load(std::memory_order_acquire)); }
  // Takes the pending error of an asynchronous call, if any. Called by everything that waits.
  CUresult take_async_error();
  // Looks at the worker's life and at fatal errors; called by every wait each few milliseconds, and by polls.
  CUresult check_alive();

  // --- facts
  // ------------------------------------------------------------------------------------------------
  std::span<const wire::DeviceInfo> devices() const { return {devices_.data(), device_count_}; }
  int driver_version() const { return driver_version_; }
  const wire::Window& window() const { return window_; }
  const char* transport_name() const;
  // Hands a descriptor to the worker; the number that the message which needs it must name, or 0.
  u64 send_descriptor(int fd);
  bool shared_memory() const { return shared_memory_; }  // false over TCP: host memory cannot be mapped
  bool in_machine_window() const { return weakly_ordered_; }
  // What is read from the window after this was not read before it (Transport::weakly_ordered).
  void order_reads() const {
    if (weakly_ordered_) [[unlikely]]
      _mm_lfence();
  }
  // For what is told the worker past the ring, after a fence.
  void ring_if_asleep();
  // How many messages have been begun.
  u64 tickets() const { return tail_->load(std::memory_order_relaxed); }

 private:
  friend class Claimer;
  Session();
  CUresult start();
  CUresult load_devices();
  // Ends the session for good: every call from now on returns `result`.
  CUresult fail(CUresult result, const char* why);
  // Asks the worker to look at the stream behind a word, since a faulted context never writes it.
  void poke(u32 word);
  bool wait_for_slot(u64 ticket);
  void write_fault_output() const;
  // Waits until the worker has executed every slot before `ticket`.
  CUresult wait_executed(u64 ticket);
  CUresult wait_completion(const Completion& completion);
  static void after_fork_in_child();

  static std::atomic<Session*> g_current;
  wire::Window window_;
  std::unique_ptr<Transport> transport_;
  alignas(64) std::atomic<u64> seen_head_{
      0};  // a copy of Control::head, so that claim() rarely reads the worker's line
  alignas(64) std::atomic<u32> failed_{0};
  std::atomic<u64> loads_{0};  // images loaded so far...
  std::atomic<u64> silent_loads_{
      0};  // ... and how many it were when the worker last said that none of them prints
  std::array<wire::DeviceInfo, wire::kMaxDevices> devices_{};
  u32 device_count_ = 0;
  int driver_version_ = 0;
  bool shared_memory_ = true;
  bool weakly_ordered_ = false;
  std::atomic<u64>* tail_ = nullptr;  // where tickets come from
  std::atomic<u64> own_tail_{0};
  std::atomic<u64> next_parcel_{1};
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<Heap> heap_;
};

}  // namespace gpupool::guest
