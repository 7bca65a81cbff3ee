// Every wait of the guest runtime. All of them watch three things: what they wait for, the session's error
// words, and whether the worker still lives; none sleeps for longer than 100 ms without looking.
#include <sched.h>

#include <functional>
#include <vector>

#include "guest/runtime/heap.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/profile.hpp"
#include "guest/runtime/session.hpp"
#include "guest/runtime/staging.hpp"
#include "guest/runtime/statistics.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

constexpr u32 kSpinUs = 200;  // for an answer: the worker wakes us
constexpr u32 kNapUs = 100;   // a word is written by the GPU, which cannot wake us: naps stay short
// For the GPU: a nap of 60 to 150 us shows in waits of up to some milliseconds (0.13 of 0.62 ms for a token
// of a language model, H100). The driver itself spins for as long as it takes, unless the program has asked
// it to block.
constexpr u32 kGpuSpinUs = 2000;
constexpr u64 kAliveEveryNs = 5'000'000;
constexpr u64 kPokeEveryNs = 50'000'000;
constexpr u32 kReplySleepMs = 100;

u32 spin_for_gpu_us() {
  const Context* context = top_context();
  const u32 flags = context == nullptr ? 0 : context->flags.load(std::memory_order_relaxed);
  return (flags & CU_CTX_SCHED_MASK) == CU_CTX_SCHED_BLOCKING_SYNC ? kSpinUs : kGpuSpinUs;
}

}  // namespace

CUresult Session::wait_word(u32 index, u64 value) {
  if (word(index) >= value) {
    if (may_print()) [[unlikely]]
      take_output(index);
    return take_async_error();
  }
  count_wait(wire::Function::stream_mark);
  const ProfiledWait waiting;
  wire::Backoff backoff(spin_for_gpu_us(), kNapUs);
  u64 next_alive = kAliveEveryNs;
  u64 next_poke = kPokeEveryNs / 5;
  while (word(index) < value) {
    backoff.step();
    const u64 elapsed = backoff.elapsed_ns();
    if (elapsed >= next_alive) {
      next_alive = elapsed + kAliveEveryNs;
      if (const CUresult result = check_alive(); result != CUDA_SUCCESS) return result;
    }
    if (elapsed >= next_poke) {
      next_poke = elapsed + kPokeEveryNs;
      poke(index);
    }
  }
  if (may_print()) [[unlikely]]
    take_output(index);
  return take_async_error();
}

void Session::poke(u32 index) {
  // The thread that waits may have another context current than the stream's, or none.
  u32 context = 0;
  wire::Handle stream{};
  g_streams.each([&](const Stream& each) {
    if (each.handle.index() != index || each.capturing.load(std::memory_order_acquire)) return;
    stream = each.handle;
    context = each.context->alive.load(std::memory_order_acquire) ? each.context->index : 0;
  });
  const Claim slot = claim();
  if (slot.slot == nullptr) return;
  // A destroyed stream cannot be asked any more: then its context is.
  const wire::Function look = stream ? wire::Function::stream_poke : wire::Function::fault_check;
  slot.slot->function = static_cast<u16>(look);
  slot.slot->stream = stream;
  if (context != 0) slot.slot->context = context;
  publish(slot);  // no work: last_work stays
}

CUresult Session::synchronize(Stream& stream) {
  if (idle(stream)) return wait_word(stream.handle.index(), 0);
  // The newest work may carry a mark already (an event record, a copy): then there is nothing to send.
  const u64 work = stream.last_work.load(std::memory_order_acquire);
  if (stream.last_mark.load(std::memory_order_acquire) >= work) return wait_word(stream.handle.index(), work);
  Call call(wire::Function::stream_mark);
  call.on(stream);
  call.mark();
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  return wait_word(stream.handle.index(), call.ticket() + 1);
}

CUresult Session::synchronize(Context& context) {
  std::vector<std::pair<u32, u64>> waits;
  {
    const std::lock_guard lock(context.mutex);
    waits = context.leaving;
    for (Stream* stream : context.streams) {
      if (idle(*stream) || stream->capturing.load(std::memory_order_acquire)) continue;
      u64 value = stream->last_work.load(std::memory_order_acquire);
      if (stream->last_mark.load(std::memory_order_acquire) < value) {
        Call call(wire::Function::stream_mark);
        call.on(*stream);
        call.mark();
        if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
        value = call.ticket() + 1;
      }
      waits.emplace_back(stream->handle.index(), value);
    }
  }
  for (const auto& [index, value] : waits)
    if (const CUresult result = wait_word(index, value); result != CUDA_SUCCESS) return result;
  return context.legacy == nullptr ? take_async_error() : wait_word(context.legacy->handle.index(), 0);
}

CUresult Session::wait_reply(u64 ticket, wire::ReplyBox*& box) {
  box = &window_.reply(thread_index());
  const u64 wanted = ticket + 1;
  const auto answered = [&] {
    if (box->done.load(std::memory_order_acquire) != wanted) return false;
    order_reads();
    return true;
  };
  if (answered()) return CUDA_SUCCESS;
  if (wire::Backoff::spare_cores()) {
    const u64 start = wire::monotonic_ns();
    while (wire::monotonic_ns() - start < u64{kSpinUs} * 1000) {
      for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
      if (answered()) return CUDA_SUCCESS;
    }
  }
  while (true) {
    transport_->sleep(*box, wanted, kReplySleepMs);
    if (answered()) return CUDA_SUCCESS;
    if (const CUresult result = check_alive(); result != CUDA_SUCCESS && !answered()) return result;
  }
}

CUresult Session::wait_executed(u64 ticket) {
  wire::Backoff backoff(kSpinUs, kNapUs);
  u64 next_alive = kAliveEveryNs;
  while (window_.control().head.load(std::memory_order_acquire) < ticket) {
    backoff.step();
    if (backoff.elapsed_ns() < next_alive) continue;
    next_alive = backoff.elapsed_ns() + kAliveEveryNs;
    if (const CUresult result = check_alive(); result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

CUresult Session::wait_completion(const Completion& completion) {
  const ProfiledWait waiting;
  if (completion.word == 0) return wait_executed(completion.value);
  // An asynchronous error is left for the program's own next wait.
  wire::Backoff backoff(kSpinUs, kNapUs);
  u64 next_alive = kAliveEveryNs;
  while (word(completion.word) < completion.value) {
    backoff.step();
    if (backoff.elapsed_ns() < next_alive) continue;
    next_alive = backoff.elapsed_ns() + kAliveEveryNs;
    if (const CUresult result = check_alive(); result != CUDA_SUCCESS) return result;
    poke(completion.word);
  }
  return CUDA_SUCCESS;
}

Bulk Session::stage(u64 bytes) {
  const auto complete = [this](const Completion& completion) {
    return completion.word == 0 ? window_.control().head.load(std::memory_order_acquire) >= completion.value
                                : word(completion.word) >= completion.value;
  };
  for (const Bulk& piece : staging_->finished_heap_pieces(complete)) heap_->free(piece);
  wire::Backoff unreleased(0, kNapUs);
  while (true) {
    Completion oldest;
    if (const Bulk bulk = staging_->try_take(bytes, oldest, complete)) return bulk;
    if (oldest.value != 0) {
      if (wait_completion(oldest) != CUDA_SUCCESS) return {};
      continue;
    }
    // The oldest piece belongs to a thread that is still filling it. Should it hold the area for long (many
    // threads with several pieces each could wait for one another), the heap has room.
    unreleased.step();
    if (failed() != CUDA_SUCCESS) return {};
    if (unreleased.elapsed_ns() > 100'000'000) {
      CUresult error = CUDA_SUCCESS;
      return heap_->allocate(bytes, true, error);
    }
  }
}

void Session::release(const Bulk& bulk, Completion completion) {
  staging_->release(bulk, completion);
}

}  // namespace gpupool::guest
