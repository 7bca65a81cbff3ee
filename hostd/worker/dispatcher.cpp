#include "hostd/worker/dispatcher.hpp"

#include <algorithm>
#include <cstring>

#include "hostd/worker/client_watch.hpp"
#include "hostd/worker/crash.hpp"
#include "hostd/worker/device_output.hpp"
#include "hostd/worker/launch_crew.hpp"
#include "hostd/worker/lease_class.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/memory_account.hpp"
#include "hostd/worker/senders.hpp"
#include "wire/cpp/futex.hpp"
#include "worker_dispatch.hpp"  // generated: kHandlers, kHandlerCount

namespace gpupool::worker {
namespace {

constexpr u64 kPublishHeadEvery = 64;  // a fresh head costs the client a cache miss; the ring has 8192 slots
constexpr u64 kSpinNs = 2'000'000;     // covers the gaps between launches of a busy program
constexpr u64 kSleepNs = 1'000'000'000;  // only a look at stalled slots: the client's bell ends the sleep
constexpr u64 kTurnNs = 20'000;          // for so long a message that waits for the GPU is looked at alone
constexpr u64 kLookNs = 50'000;
constexpr u64 kStalledNs =
    10'000'000'000;  // a ticket taken and not published for so long has lost its thread
constexpr u64 kPayloadLimit = 2ull << 30;
constexpr u16 kKnownFlags =
    wire::kReply | wire::kMark | wire::kBulkIn | wire::kBulkOut | wire::kPayloadInBulk | wire::kAnswerInBulk;

// Errors after which the context can do nothing more (cuda.h: "the process must be terminated and
// relaunched").
bool is_fatal(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
      return true;
    default:
      return false;
  }
}

// Works on its own stream alone: it need not wait for the launches of others. None of these makes or forgets
// an object that a launch uses.
bool is_stream_local(wire::Function function) {
  switch (function) {
    case wire::Function::cuLaunchKernel:
    case wire::Function::stream_mark:
    case wire::Function::cuEventRecordWithFlags:
    case wire::Function::cuStreamWaitEvent:
    case wire::Function::cuMemcpyHtoDAsync_v2:
    case wire::Function::cuMemcpyDtoHAsync_v2:
    case wire::Function::cuMemcpyDtoDAsync_v2:
    case wire::Function::cuMemsetD8Async:
    case wire::Function::cuMemsetD32Async:
      return true;
    default:
      return false;
  }
}

}  // namespace

void Dispatcher::run() {
  while (true) {
    if (!serve(next_)) {
      if (worker_.crew != nullptr && worker_.crew->active()) {
        // The next launch may come before the last ones are issued: it need not wait for them.
        if (!worker_.crew->all_issued()) {
          __builtin_ia32_pause();
          continue;
        }
        settle_crew(nullptr);
      }
      wait_for(next_);
      continue;
    }
    if (worker_.answers_wait) [[unlikely]]
      look_at_answers();
    if (next_ % kPublishHeadEvery == 0) {
      worker_.window.control().head.store(next_, std::memory_order_release);
      publish_counters(next_, wire::monotonic_ns());
    }
  }
}

void Dispatcher::publish_counters(u64 head, u64 now_ns) {
  busy_ns_ += now_ns - busy_since_ns_;
  busy_since_ns_ = now_ns;
  UsagePage::Counters& counters = worker_.usage->counters;
  const Tally& tally = worker_.tally;
  counters.messages.store(head, std::memory_order_relaxed);
  counters.answers.store(tally.answers, std::memory_order_relaxed);
  counters.launches.store(tally.launches, std::memory_order_relaxed);
  counters.to_device_bytes.store(tally.to_device_bytes, std::memory_order_relaxed);
  counters.from_device_bytes.store(tally.from_device_bytes, std::memory_order_relaxed);
  counters.busy_ns.store(busy_ns_, std::memory_order_relaxed);
}

bool Dispatcher::serve(u64 head) {
  wire::Slot& slot = worker_.window.slot(head);
  if (slot.sequence.load(std::memory_order_acquire) != head + 1) return false;
  alignas(64) u8 copy[sizeof(wire::Slot)];
  std::memcpy(copy, static_cast<const void*>(&slot), sizeof copy);
  execute(*reinterpret_cast<const wire::Slot*>(copy), head);
  return true;
}

void Dispatcher::wait_for(u64 head) {
  wire::Control& control = worker_.window.control();
  wire::Slot& slot = worker_.window.slot(head);
  const auto ready = [&] { return slot.sequence.load(std::memory_order_seq_cst) == head + 1; };
  control.head.store(head, std::memory_order_release);
  const u64 start = wire::monotonic_ns();
  publish_counters(head, start);
  while (worker_.answers_wait && !ready()) {
    const u64 now = wire::monotonic_ns();
    if (now >= activity_.due_ns()) activity_.sample(now);
    if (now >= gate_.due_ns()) gate_.tend(now);
    answer_waiting(now + kTurnNs);
  }
  if (wire::Backoff::spare_cores()) {
    for (u64 now = start; now - start < kSpinNs; now = wire::monotonic_ns()) {
      if (now >= activity_.due_ns()) activity_.sample(now);
      if (now >= gate_.due_ns()) gate_.tend(now);
      busy_since_ns_ = now;  // in case that it is over: the time is known, to some microseconds
      for (int i = 0; i < 64; ++i) {
        if (ready()) return;
        __builtin_ia32_pause();
      }
    }
  }
  u64 open_since = 0;  // since when a ticket has been seen taken and not published; 0 while none is
  while (!ready()) {
    const u64 now = wire::monotonic_ns();
    if (now >= activity_.due_ns()) activity_.sample(now);
    if (now >= gate_.due_ns()) gate_.tend(now);
    look_at_idle_memory();
    const u64 due_ns = std::min(activity_.due_ns(), gate_.due_ns());
    const u64 sleep_ns = std::min(kSleepNs, due_ns - std::min(now, due_ns));
    const u32 bell = control.doorbell.load(std::memory_order_acquire);
    control.worker_sleeping.store(1, std::memory_order_seq_cst);
    // The client stores its slot, fences, and then reads worker_sleeping: one of us sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!ready()) wire::futex_wait_ns(control.doorbell, bell, sleep_ns);
    control.worker_sleeping.store(0, std::memory_order_relaxed);
    check_stalled(head, open_since);
  }
  busy_since_ns_ = wire::monotonic_ns();
}

// The time counts from when the ticket was first seen, not from the last slot: a client may be idle for hours
// and be between ticket and slot just when we look.
void Dispatcher::check_stalled(u64 head, u64& open_since) {
  if (worker_.client_stopped == nullptr) return;
  const u64 now = wire::monotonic_ns();
  if (worker_.window.control().tail.load(std::memory_order_relaxed) <= head || worker_.client_stopped())
    open_since = 0;
  else if (open_since == 0)
    open_since = now;
  else if (now - open_since >= kStalledNs &&
           worker_.window.slot(head).sequence.load(std::memory_order_acquire) != head + 1)
    throw wire::ProtocolError("a client thread took a ticket and never published it");
}

void Dispatcher::read_header(const wire::Slot& slot, Request& request) {
  if (slot.function >= kHandlerCount || kHandlers[slot.function] == nullptr)
    throw wire::ProtocolError("no such function: " + std::to_string(slot.function));
  if ((slot.flags & ~kKnownFlags) != 0) throw wire::ProtocolError("unknown slot flags");
  if (slot.thread != g_senders.last) [[unlikely]] {
    if (slot.thread >= wire::kThreads) throw wire::ProtocolError("thread index out of range");
    g_senders.sent(slot.thread, request.ticket);
  }
  if (slot.inline_size > wire::kInlineBytes) throw wire::ProtocolError("inline payload too long");
  request.function = static_cast<wire::Function>(slot.function);
  request.flags = slot.flags;
  request.thread = slot.thread;
  request.context_index = slot.context;
  request.stream_handle = slot.stream;
  if ((slot.flags & (wire::kBulkIn | wire::kBulkOut)) != 0) {
    if (!worker_.window.holds_data(slot.bulk_offset, slot.bulk_size))
      throw wire::ProtocolError("bulk piece outside the window's data area");
    request.bulk_offset = slot.bulk_offset;
    request.bulk_size = slot.bulk_size;
  }
  if ((slot.flags & wire::kPayloadInBulk) != 0 && (slot.flags & wire::kBulkIn) == 0)
    throw wire::ProtocolError("payload in bulk without a bulk piece");
  if ((slot.flags & wire::kAnswerInBulk) != 0 && (slot.flags & wire::kBulkOut) == 0)
    throw wire::ProtocolError("answer in bulk without a bulk piece");
  if ((slot.flags & wire::kMark) != 0 && !slot.stream) throw wire::ProtocolError("a mark without a stream");
}

std::span<const u8> Dispatcher::payload_of(const wire::Slot& slot, const Request& request) {
  if ((slot.flags & wire::kPayloadInBulk) == 0) return {slot.payload, slot.inline_size};
  if (request.bulk_size > kPayloadLimit) throw wire::ProtocolError("payload above the limit");
  const u8* source = worker_.at(request.bulk_offset);
  payload_.assign(source, source + request.bulk_size);
  return payload_;
}

bool Dispatcher::make_current(u32 context_index, CUresult& error) {
  if (context_index == current_context_) return true;
  CUcontext* context = worker_.contexts.find(wire::Handle::make(wire::HandleKind::context, 0, context_index));
  if (context_index != 0 && context == nullptr) {
    error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return false;
  }
  error = worker_.driver.cuCtxSetCurrent(context == nullptr ? nullptr : *context);
  if (error != CUDA_SUCCESS) return false;
  current_context_ = context_index;
  current_ = context == nullptr ? nullptr : *context;
  gate_.entered(context_index);
  return true;
}

bool Dispatcher::attempt(const wire::Slot& slot, u64 ticket) {
  Request request;
  request.ticket = ticket;
  read_header(slot, request);
  if (worker_.crew != nullptr && worker_.crew->active()) settle_crew(&slot);
  CUresult result = CUDA_SUCCESS;
  StreamEntry* stream = slot.stream ? worker_.streams.find(slot.stream) : nullptr;
  // A stream works in its own context, whichever is current in the client's thread, also with none. What we
  // issue for it, the marks too, must find that context.
  bool ready = make_current(stream != nullptr ? stream->context : slot.context, result);
  if (stream != nullptr) {
    request.stream = stream->stream;
    request.stream_context = stream->context;
  } else if (ready && slot.stream) {
    ready = false;
    result = CUDA_ERROR_INVALID_HANDLE;
  }
  const bool draws = request.function == wire::Function::gl_batch;
  if (ready && (draws ? gate_.is_drawing_watched() : gate_.is_watched())) [[unlikely]] {
    const bool submits = lease_class(request.function) == LeaseClass::submits;
    if (submits && !(draws ? gate_.admit_drawing() : gate_.admit(slot))) return false;
    const bool marks = !submits && needs_mark(request.function, (request.flags & wire::kReply) != 0);
    if (marks) gate_.mark();
    if (submits || marks) ready = make_current(stream != nullptr ? stream->context : slot.context, result);
  }
  answer_.clear();
  request.out = &answer_;
  request.in = wire::Reader(payload_of(slot, request));
  if (ready) {
    if (stream != nullptr) activity_.used(slot.stream, *stream);
    request.context = current_;
    g_serving.store(slot.function, std::memory_order_relaxed);
    g_owner = worker_.owner_of(stream != nullptr ? stream->context : request.context_index);
    result = kHandlers[slot.function](worker_, request);
    if (worker_
            .context_changed) {  // a handler created or destroyed a context: the driver's current one moved
      worker_.context_changed = false;
      if (worker_.crew != nullptr) worker_.crew->contexts_changed();
      gate_.contexts_changed();
      current_context_ = ~0u;
    }
  }
  result = finish(request, result);
  if ((request.flags & wire::kReply) != 0 && !request.answered_later) answer(request, result);
  return true;
}

void Dispatcher::answer_waiting(u64 until_ns) {
  Request request;
  answer_.clear();
  request.out = &answer_;
  looked_at_answers_ns_ = until_ns;
  if (worker_.drawing->resume(request, until_ns)) answer(request, CUDA_SUCCESS);
}

// While the client goes on sending: looking costs more than most messages.
void Dispatcher::look_at_answers() {
  const u64 now = wire::monotonic_ns();
  if (now - std::min(now, looked_at_answers_ns_) < kLookNs) return;
  answer_waiting(0);
  looked_at_answers_ns_ = now;
}

void Dispatcher::settle_crew(const wire::Slot* next) {
  const StreamEntry* stream = next != nullptr && next->stream ? worker_.streams.find(next->stream) : nullptr;
  const auto function = next == nullptr ? wire::Function{} : static_cast<wire::Function>(next->function);
  if (stream != nullptr && stream->stream != CU_STREAM_LEGACY && is_stream_local(function)) {
    // The next launch goes to the same thread of the crew, behind the others.
    if (function != wire::Function::cuLaunchKernel) worker_.crew->settle(next->stream);
  } else {
    worker_.crew->settle_all();
  }
  if (const CUresult failed = worker_.crew->take_error(); failed != CUDA_SUCCESS)
    report(wire::Function::cuLaunchKernel, 0, failed);
}

CUresult Dispatcher::finish(Request& request, CUresult result) {
  if (result != CUDA_SUCCESS) report(request.function, request.flags, result);
  if ((request.flags & wire::kMark) != 0 && !request.marked) {
    const CUresult marked = worker_.mark(request.stream_handle, request.ticket);
    if (marked != CUDA_SUCCESS) {
      // Nobody would ever write this word: whoever waits must learn it from the error instead.
      report(request.function, request.flags, marked);
      worker_.window.word(request.stream_handle.index() % wire::kWords)
          .value.store(request.ticket + 1, std::memory_order_release);
      if (result == CUDA_SUCCESS) result = marked;
    }
  }
  return result;
}

void Dispatcher::report(wire::Function function, u16 flags, CUresult result) {
  wire::Control& control = worker_.window.control();
  if (is_fatal(result)) {
    if (control.fatal_error.load(std::memory_order_relaxed) == 0) {
      // Whoever met the fault may only have asked, and the driver prints within its own waits.
      if (result == CUDA_ERROR_ASSERT) wait_for_assertions(worker_.driver, current_);
      publish_fault_output(worker_.window);
      gate_.lost();
    }
    u32 none = 0;
    if (control.fatal_error.compare_exchange_strong(none, static_cast<u32>(result),
                                                    std::memory_order_acq_rel))
      log(LogLevel::error, "the context faulted",
          std::string(wire::function_name(function)) + " returned " + std::to_string(result));
    return;
  }
  if ((flags & wire::kReply) != 0) return;
  // A poke or a query of something unfinished is an answer, not an error.
  if (result == CUDA_ERROR_NOT_READY) return;
  log(LogLevel::debug, "asynchronous call failed",
      std::string(wire::function_name(function)) + " returned " + std::to_string(result));
  control.async_function.store(static_cast<u32>(function), std::memory_order_relaxed);
  u32 none = 0;
  control.async_error.compare_exchange_strong(none, static_cast<u32>(result), std::memory_order_acq_rel);
}

void Dispatcher::answer(const Request& request, CUresult result) {
  ++worker_.tally.answers;
  wire::ReplyBox& box = worker_.window.reply(request.thread);
  const std::span<const u8> bytes = answer_.bytes();
  const bool in_bulk = (request.flags & wire::kAnswerInBulk) != 0;
  const u64 capacity = in_bulk ? request.bulk_size : u64{wire::kReplyBytes};
  if (bytes.size() > capacity) throw wire::ProtocolError("the client left too little room for the answer");
  if (!bytes.empty())
    std::memcpy(in_bulk ? worker_.at(request.bulk_offset) : box.payload, bytes.data(), bytes.size());
  box.status = static_cast<i32>(result);
  box.size = static_cast<u32>(bytes.size());
  box.done.store(request.ticket + 1, std::memory_order_seq_cst);
  if (box.sleeping.load(std::memory_order_seq_cst) == 0) return;
  if (worker_.bell_socket >= 0) [[unlikely]]
    ring_distant_client(worker_.bell_socket);
  else
    wire::futex_wake(box.done);
}

}  // namespace gpupool::worker
