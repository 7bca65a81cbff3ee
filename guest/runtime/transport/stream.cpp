// The transport without shared memory: two threads that carry the ring and its data over a socket, and two
// for each further connection, which carry large data (wire/cpp/lanes.hpp).
//
// The sender reads the ring as a worker would, so publishing a slot is the same code on every transport. It
// never advances Control::head: the worker's own head comes back with the receiver and is the flow control of
// the ring; that of data is the staging area, whose pieces come free only when the worker says so.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "guest/runtime/transport/secure.hpp"
#include "guest/runtime/transport/transport.hpp"
#include "guest/runtime/transport/vsock_watch.hpp"
#include "wire/cpp/futex.hpp"
#include "wire/cpp/lanes.hpp"
#include "wire/cpp/stream_frame.hpp"
#include "wire/cpp/stream_io.hpp"
#include "wire/cpp/zero_copy.hpp"

namespace gpupool::guest {
namespace {

constexpr u64 kSpinNs = 200'000;
// Of the session, which is never destroyed.
std::atomic<const wire::ZeroCopyTotals*> g_totals{nullptr};
constexpr u32 kReceiveSpinUs = 200;  // about a round trip with a small kernel in it
constexpr u32 kSleepMs = 1000;

class Stream final : public Transport {
 public:
  Stream(int socket, const std::vector<int>& lanes, std::unique_ptr<Secured> secured, const char* name,
         wire::Window window, wire::ZeroCopyMode zero_copy)
      : socket_(socket),
        secured_(std::move(secured)),
        name_(name),
        window_(window),
        watch_(socket, received_, [this] { hang_up(); }),
        zero_copy_(zero_copy, socket, lanes),
        lanes_(window, lanes, zero_copy_, [this](wire::Lanes::End how) { lane_ended(how); }) {}
  ~Stream() override {
    g_totals.store(nullptr, std::memory_order_release);
    stopping_.store(true, std::memory_order_release);
    watch_.stop();
    if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
    lanes_.stop();
    window_.control().doorbell.fetch_add(1, std::memory_order_release);
    wire::futex_wake(window_.control().doorbell);
    if (sender_.joinable()) sender_.join();
    if (receiver_.joinable()) receiver_.join();
    if (socket_ >= 0) close(socket_);
  }

  void start() {
    // The program's signals are not for our threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    sender_ = std::thread([this] { send_loop(); });
    receiver_ = std::thread([this] { receive_loop(); });
    lanes_.start();
    watch_.start();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  bool peer_alive() override { return !gone_.load(std::memory_order_acquire); }
  const char* name() const override { return name_; }
  bool shared_memory() const override { return false; }
  bool send_descriptor(int, u64) override { return false; }  // the worker is on another machine
  const wire::ZeroCopyTotals& zero_copy() const { return zero_copy_.totals(); }
  void abandon() override {
    // The threads do not exist in a forked child; their handles must not be joined there.
    close(socket_);
    socket_ = -1;
    gone_.store(true, std::memory_order_release);
    sender_.detach();
    receiver_.detach();
    lanes_.abandon();
    watch_.abandon();
    if (secured_ != nullptr) secured_->abandon();
  }

  // One of the two threads' work. Public for the fuzz target, which needs no threads.
  void receive_loop() {
    wire::Frame frame;
    while (wire::read_next(socket_, &frame, sizeof frame, kReceiveSpinUs) && apply(frame))
      received_.fetch_add(1, std::memory_order_relaxed);
    if (!stopping_.load(std::memory_order_acquire)) log_debug("the connection to the worker has ended");
    gone_.store(true, std::memory_order_release);
    lanes_.hang_up();
  }

 private:
  void send_loop() {
    u64 next = 0;
    while (!stopping_.load(std::memory_order_acquire)) {
      if (!send_release()) break;
      if (!published(next)) {
        wait_for(next);
        continue;
      }
      if (!send_from(next)) break;
    }
    gone_.store(true, std::memory_order_release);
  }

  bool published(u64 ticket) const {
    return window_.slot(ticket).sequence.load(std::memory_order_acquire) == ticket + 1;
  }

  u64 host_released() const { return window_.control().host_released.load(std::memory_order_seq_cst); }

  // Tells how far host functions have run. Not through the ring: the worker may be inside a driver call that
  // waits for one of them, and the ring full behind it.
  bool send_release() {
    const u64 released = host_released();
    if (released == sent_release_) return true;
    sent_release_ = released;
    wire::Frame frame{wire::FrameKind::released, 0, 0, released};
    iovec piece{&frame, sizeof frame};
    return wire::send_all(socket_, &piece, 1);
  }

  // Sends the run of published slots that starts at `next`, up to the end of the ring or a slot with data.
  bool send_from(u64& next) {
    const wire::Slot& first = window_.slot(next);
    if ((first.flags & wire::kBulkIn) != 0 && !send_data(next, first.bulk_offset, first.bulk_size))
      return false;
    u32 count = 1;
    while (count < wire::kMaxSlotsPerFrame && (next + count) % wire::kRingSlots != 0 &&
           published(next + count) && (window_.slot(next + count).flags & wire::kBulkIn) == 0)
      ++count;
    wire::Frame frame{wire::FrameKind::slots, count, 0, 0};
    iovec pieces[2] = {{&frame, sizeof frame}, {&window_.slot(next), count * sizeof(wire::Slot)}};
    if (!wire::send_all(socket_, pieces, 2)) return false;
    next += count;
    return true;
  }

  bool send_data(u64 ticket, u64 offset, u64 size) {
    const u64 piece = zero_copy_.open(ticket + 1, offset, size);
    if (lanes_.takes(offset, size)) return lanes_.send(socket_, offset, size, piece);
    while (size > 0) {
      const u64 part = size < wire::kMaxDataPerFrame ? size : wire::kMaxDataPerFrame;
      if (!zero_copy_.send_data_frame(0, window_, offset, part, piece)) return false;
      offset += part;
      size -= part;
    }
    return true;
  }

  void wait_for(u64 ticket) {
    wire::Control& control = window_.control();
    if (wire::Backoff::spare_cores()) {
      const u64 start = wire::monotonic_ns();
      while (wire::monotonic_ns() - start < kSpinNs) {
        for (int i = 0; i < 64; ++i) __builtin_ia32_pause();
        if (published(ticket) || host_released() != sent_release_) return;
      }
    }
    const u32 bell = control.doorbell.load(std::memory_order_acquire);
    control.worker_sleeping.store(1, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!published(ticket) && host_released() == sent_release_ && !stopping_.load(std::memory_order_acquire))
      wire::futex_wait(control.doorbell, bell, kSleepMs);
    control.worker_sleeping.store(0, std::memory_order_relaxed);
  }

  // One connection is as good as all: without it data would be missing.
  void lane_ended(wire::Lanes::End how) {
    if (how == wire::Lanes::End::lie) log_line("the host sent what is no data on a further connection");
    hang_up();
  }

  void hang_up() {
    gone_.store(true, std::memory_order_release);
    shutdown(socket_, SHUT_RDWR);
    lanes_.hang_up();
  }

  bool apply(const wire::Frame& frame) {
    wire::Control& control = window_.control();
    switch (frame.kind) {
      case wire::FrameKind::data:
        return valid_data(frame) && wire::read_all(socket_, window_.base + frame.offset, frame.size);
      case wire::FrameKind::store:
        return store(frame.offset, frame.size);
      case wire::FrameKind::await:
        return lanes_.arrival(socket_, frame) == wire::Lanes::Arrival::here;
      case wire::FrameKind::error: {
        control.async_function.store(static_cast<u32>(frame.offset), std::memory_order_relaxed);
        u32 none = 0;
        control.async_error.compare_exchange_strong(none, frame.count, std::memory_order_acq_rel);
        return true;
      }
      case wire::FrameKind::fatal:
        control.fatal_error.store(frame.count, std::memory_order_release);
        return true;
      default:
        log_line("the host sent a frame of unknown kind %u", static_cast<u32>(frame.kind));
        return false;
    }
  }

  // Data goes to the data area, to one reply box behind its `done`, or to where the output of a fault is.
  bool valid_data(const wire::Frame& frame) const {
    if (frame.size > wire::kMaxDataPerFrame) return false;
    if (window_.holds_data(frame.offset, frame.size)) return true;
    const u64 in_fault = frame.offset - wire::kFaultOutputOffset;
    if (in_fault < sizeof(wire::FaultOutput) && frame.size <= sizeof(wire::FaultOutput) - in_fault)
      return true;
    const u64 in_replies = frame.offset - wire::kReplyOffset;
    if (in_replies >= wire::kThreads * sizeof(wire::ReplyBox)) return false;
    const u64 in_box = in_replies % sizeof(wire::ReplyBox);
    return in_box >= offsetof(wire::ReplyBox, status) && in_box + frame.size <= sizeof(wire::ReplyBox);
  }

  bool store(u64 offset, u64 value) {
    const bool is_head = offset == wire::kControlOffset + offsetof(wire::Control, head);
    const bool is_word = offset - wire::kWordsOffset < wire::kWords * sizeof(wire::Word) &&
                         (offset - wire::kWordsOffset) % sizeof(wire::Word) == 0;
    const bool is_reply = offset - wire::kReplyOffset < wire::kThreads * sizeof(wire::ReplyBox) &&
                          (offset - wire::kReplyOffset) % sizeof(wire::ReplyBox) == 0;
    if (!is_head && !is_word && !is_reply) return false;
    // What this says is done, its pieces come free: the kernel must not read there any more. Word 0 is no
    // ticket, and frees nothing.
    if (offset != wire::kWordsOffset && !zero_copy_.wait_until(value)) {
      log_line("the host answered to what the kernel has not sent yet");
      return false;
    }
    reinterpret_cast<std::atomic<u64>*>(window_.base + offset)->store(value, std::memory_order_seq_cst);
    if (is_reply) {
      auto* box = reinterpret_cast<wire::ReplyBox*>(window_.base + offset);
      if (box->sleeping.load(std::memory_order_seq_cst) != 0) wire::futex_wake(box->done);
    }
    return true;
  }

  int socket_;
  std::unique_ptr<Secured> secured_;  // destroyed after every plain socket is closed
  const char* name_;
  wire::Window window_;
  u64 sent_release_ = 0;  // the sender's own
  std::atomic<bool> stopping_{false};
  std::atomic<bool> gone_{false};
  std::atomic<u64> received_{0};  // frames
  std::thread sender_, receiver_;
  VsockWatch watch_;
  wire::ZeroCopy zero_copy_;
  wire::Lanes lanes_;  // last: its threads use the others
};

}  // namespace

std::unique_ptr<Transport> make_stream(const std::vector<int>& sockets, std::unique_ptr<Secured> secured,
                                       const char* name, wire::Window window, std::string& why) {
  wire::ZeroCopyMode zero_copy = wire::ZeroCopyMode::automatic;
  if (!read_zero_copy(zero_copy, why)) {
    for (const int socket : sockets) close(socket);
    return nullptr;
  }
  void* mapped = mmap(window.base, window.size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (mapped == MAP_FAILED) {
    why = std::string("cannot make the window: ") + std::strerror(errno);
    for (const int socket : sockets) close(socket);
    return nullptr;
  }
  madvise(window.base, wire::kHeapOffset, MADV_DONTFORK);
  const std::vector<int> lanes(sockets.begin() + 1, sockets.end());
  auto transport =
      std::make_unique<Stream>(sockets.front(), lanes, std::move(secured), name, window, zero_copy);
  g_totals.store(&transport->zero_copy(), std::memory_order_release);
  transport->start();
  return transport;
}

const wire::ZeroCopyTotals* zero_copy_totals() {
  return g_totals.load(std::memory_order_acquire);
}

}  // namespace gpupool::guest
