// Connecting, the ring, failure and fork. Waiting is in waiting.cpp.
#include "guest/runtime/session.hpp"

#include <pthread.h>
#include <xmmintrin.h>

#include <mutex>
#include <string>

#include "guest/runtime/gate.hpp"
#include "guest/runtime/heap.hpp"
#include "guest/runtime/log.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/profile.hpp"
#include "guest/runtime/staging.hpp"
#include "guest/runtime/statistics.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "wire/cpp/futex.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest {

std::atomic<Session*> Session::g_current{nullptr};
Gate g_gate;

Session::Session() = default;
Session::~Session() = default;

CUresult Session::connect() {
  static std::mutex mutex;
  static bool tried = false;
  static CUresult result = CUDA_SUCCESS;
  const std::lock_guard lock(mutex);
  if (tried) return result;
  // The session is never destroyed: programs call the driver from their own exit handlers.
  auto* session = new Session();
  result = session->start();
  // A refused or absent host may be there at the next cuInit; a started session stays.
  tried = result == CUDA_SUCCESS;
  if (result != CUDA_SUCCESS) delete session;
  return result;
}

CUresult Session::start() {
  Connection connection;
  std::string why;
  bool refused = false;
  if (!dial(connection, why, refused)) {
    // Some programs ask again and again; the caller's lock guards what was said last.
    static auto& said = *new std::string();
    if (why != said) log_line("%s", why.c_str());
    said = why;
    return CUDA_ERROR_NO_DEVICE;
  }
  window_ = connection.window;
  transport_ = std::move(connection.transport);
  shared_memory_ = transport_->shared_memory();
  weakly_ordered_ = transport_->weakly_ordered();
  // Only a worker that can judge a stopped client looks at the window's, and that one is on this machine.
  tail_ = weakly_ordered_ ? &own_tail_ : &window_.control().tail;
  const int host_version = static_cast<int>(connection.welcome.driver_version);
  driver_version_ = host_version < static_cast<int>(wire::kCudaVersion)
                        ? host_version
                        : static_cast<int>(wire::kCudaVersion);
  staging_ = std::make_unique<Staging>(window_);
  heap_ = std::make_unique<Heap>(window_);
  g_current.store(this, std::memory_order_release);
  pthread_atfork(nullptr, nullptr, &Session::after_fork_in_child);
  arrange_statistics();
  const CUresult result = load_devices();
  if (result != CUDA_SUCCESS) {
    g_current.store(nullptr, std::memory_order_release);
    return result;
  }
  open_profile(*this);
  g_gate.bits.fetch_and(~kGateShut, std::memory_order_release);
  // A session that was lost while it started: whoever shuts the gate sets failed_ first.
  if (failed() != CUDA_SUCCESS) g_gate.bits.fetch_or(kGateShut, std::memory_order_release);
  return result;
}

CUresult Session::load_devices() {
  Call call(wire::Function::session_devices);
  call.expect_answer(sizeof devices_ + 64);
  const CUresult result = call.wait();
  if (result != CUDA_SUCCESS) {
    log_line("the worker could not list its devices: error %d", static_cast<int>(result));
    return result;
  }
  const u32 streams = call.get<u32>();
  const u32 others = call.get<u32>();
  for (u32 kind = 1; kind < static_cast<u32>(wire::HandleKind::count_); ++kind) {
    const auto each = static_cast<wire::HandleKind>(kind);
    handles(each).lower_limit(each == wire::HandleKind::stream ? streams : others);
  }
  const u64 sent = call.get_array(devices_.data(), devices_.size());
  device_count_ = static_cast<u32>(sent < devices_.size() ? sent : devices_.size());
  return device_count_ == 0 ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

const char* Session::transport_name() const {
  return transport_->name();
}

Claim Session::claim() {
  const u32 thread = thread_index();
  if (thread == ThreadState::kNoIndex || failed() != CUDA_SUCCESS) [[unlikely]]
    return {};
  const u64 ticket = tail_->fetch_add(1, std::memory_order_relaxed);
  if (ticket - seen_head_.load(std::memory_order_relaxed) >= wire::kRingSlots) [[unlikely]] {
    if (!wait_for_slot(ticket)) return {};
  }
  wire::Slot& slot = window_.slot(ticket);
  const Context* context = top_context();
  slot.function = 0;
  slot.flags = 0;
  slot.thread = thread;
  // cudart makes a primary context current before it retains it: the worker does not know such a context yet.
  const bool known = context != nullptr && context->alive.load(std::memory_order_relaxed);
  slot.context = known ? context->index : 0;
  slot.inline_size = 0;
  slot.stream = {};
  slot.bulk_offset = 0;
  slot.bulk_size = 0;
  return Claim{&slot, ticket};
}

bool Session::wait_for_slot(u64 ticket) {
  const auto free = [&] {
    const u64 head = window_.control().head.load(std::memory_order_acquire);
    seen_head_.store(head, std::memory_order_relaxed);
    // `head` may already be past this ticket's predecessor of a moment ago: compare as a distance.
    return ticket - head < wire::kRingSlots;
  };
  if (free()) return true;  // only what we had seen of it was old
  const ProfiledWait waiting;
  wire::Backoff backoff(200, 200);
  u64 checked = 0;
  while (!free()) {
    backoff.step();
    const u64 now = backoff.elapsed_ns() / 5'000'000;
    if (now != checked) {
      checked = now;
      if (check_alive() != CUDA_SUCCESS) return false;
    }
  }
  return true;
}

void Session::publish(const Claim& claim, Stream* stream) {
  const u64 value = claim.ticket + 1;
  if (stream != nullptr && !stream->capturing.load(std::memory_order_relaxed)) {
    // Threads may publish to one stream out of ticket order: keep the newest.
    u64 before = stream->last_work.load(std::memory_order_relaxed);
    while (before < value &&
           !stream->last_work.compare_exchange_weak(before, value, std::memory_order_release)) {
    }
    if ((claim.slot->flags & wire::kMark) != 0) {
      before = stream->last_mark.load(std::memory_order_relaxed);
      while (before < value &&
             !stream->last_mark.compare_exchange_weak(before, value, std::memory_order_release)) {
      }
    }
  }
  if (weakly_ordered_) [[unlikely]]
    _mm_sfence();
  claim.slot->sequence.store(value, std::memory_order_release);
  // The store above must be visible before we look whether the worker sleeps, and the worker fences the other
  // way round: without this fence both could miss each other and the slot would wait for the worker's next
  // look. It also empties the processor's buffers of what is written to a machine's window.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  wire::Control& control = window_.control();
  if (control.worker_sleeping.load(std::memory_order_relaxed) != 0) [[unlikely]]
    transport_->ring(control);
}

CUresult Session::fail(CUresult result, const char* why) {
  u32 none = 0;
  if (failed_.compare_exchange_strong(none, static_cast<u32>(result), std::memory_order_acq_rel)) {
    g_gate.bits.fetch_or(kGateShut, std::memory_order_release);
    if (window_.control().fatal_error.load(std::memory_order_acquire) != 0) write_fault_output();
    log_line("%s", why);
  }
  return failed();
}

CUresult Session::check_alive() {
  if (const CUresult already = failed(); already != CUDA_SUCCESS) return already;
  const u32 fatal = window_.control().fatal_error.load(std::memory_order_acquire);
  if (fatal != 0) {
    order_reads();
    const std::string why = "the GPU reported error " + std::to_string(fatal) +
                            "; every CUDA call of this program now fails with it";
    return fail(static_cast<CUresult>(fatal), why.c_str());
  }
  if (!transport_->peer_alive())
    return fail(
        CUDA_ERROR_DEVICE_UNAVAILABLE,
        "the worker on the host is gone; every CUDA call of this program now fails (hostd's log says why)");
  return CUDA_SUCCESS;
}

CUresult Session::take_async_error() {
  wire::Control& control = window_.control();
  if (const u32 fatal = control.fatal_error.load(std::memory_order_acquire); fatal != 0) [[unlikely]]
    return check_alive();
  if (control.async_error.load(std::memory_order_relaxed) == 0) [[likely]]
    return CUDA_SUCCESS;
  // No exchange: that would lock the bus of a machine whose window this is. The worker, or the receiver of a
  // stream, stores only where it finds 0, so among our own threads the lock is enough.
  static auto& taking = *new std::mutex();
  const std::lock_guard lock(taking);
  const auto error = static_cast<CUresult>(control.async_error.load(std::memory_order_acquire));
  if (error != CUDA_SUCCESS) control.async_error.store(0, std::memory_order_release);
  log_debug("asynchronous call %u failed with %d", control.async_function.load(std::memory_order_relaxed),
            static_cast<int>(error));
  return error;
}

// As with the real driver, CUDA cannot be used in a forked child. The parent's ring is not mapped there
// (MADV_DONTFORK) and its socket is closed here, so that the worker sees the parent's death.
// Not in line: waking somebody is a system call anyway.
void Session::ring_if_asleep() {
  wire::Control& control = window_.control();
  if (control.worker_sleeping.load(std::memory_order_relaxed) != 0) transport_->ring(control);
}

void Session::after_fork_in_child() {
  Session* session = g_current.exchange(nullptr, std::memory_order_acq_rel);
  g_gate.bits.store(kGateShut, std::memory_order_release);
  leave_profile();
  if (session != nullptr) session->transport_->abandon();
}

u64 Session::send_descriptor(int fd) {
  const u64 id = next_parcel_.fetch_add(1, std::memory_order_relaxed);
  return transport_->send_descriptor(fd, id) ? id : 0;
}

Bulk Session::heap_allocate(u64 bytes, bool registered, CUresult& error) {
  return heap_->allocate(bytes, registered, error);
}
void Session::heap_free(const Bulk& bulk) {
  heap_->free(bulk);
}
u64 Session::pinned_offset(const void* address, u64 bytes) const {
  return heap_->pinned_offset(address, bytes);
}

}  // namespace gpupool::guest
