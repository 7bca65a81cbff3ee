#include "hostd/worker/stream_mirror.hpp"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "hostd/worker/log.hpp"
#include "wire/cpp/futex.hpp"
#include "wire/cpp/lanes.hpp"
#include "wire/cpp/reader.hpp"
#include "wire/cpp/stream_frame.hpp"
#include "wire/cpp/stream_io.hpp"
#include "wire/cpp/zero_copy.hpp"

namespace gpupool::worker {
namespace {

constexpr u32 kSpinUs = 300;  // a round trip on a fast network; then naps
constexpr u32 kNapUs = 50;
constexpr u32 kIdleWaitMs = 1000;
constexpr int kMostReadings =
    16;  // of the words in a row; they agree after two or three unless very many stream in

// Something the client is to be told: an answer or a mark, with the data it covers.
struct Watch {
  u64 ticket = 0;
  u32 index = 0;  // thread of an answer, word of a mark
  u16 flags = 0;
  u64 bulk_offset = 0;
  u64 bulk_size = 0;
};

class StreamMirror {
 public:
  StreamMirror(int socket, wire::Window window, const std::vector<int>& lanes = {},
               wire::ZeroCopyMode zero_copy = wire::ZeroCopyMode::automatic, UsagePage* usage = nullptr)
      : socket_(socket),
        window_(window),
        usage_(usage),
        zero_copy_(zero_copy, socket, lanes),
        lanes_(window, lanes, zero_copy_, lane_ended) {}

  void start() {  // lives as long as the process
    lanes_.start();
    std::thread([this] { receive_loop(); }).detach();
    std::thread([this] { send_loop(); }).detach();
  }

  void receive_loop() {
    try {
      wire::Frame frame;
      while (wire::read_next(socket_, &frame, sizeof frame, kSpinUs)) {
        if (frame.kind == wire::FrameKind::data)
          receive_data(frame);
        else if (frame.kind == wire::FrameKind::slots)
          receive_slots(frame);
        else if (frame.kind == wire::FrameKind::released)
          window_.control().host_released.store(frame.size, std::memory_order_release);
        else if (frame.kind == wire::FrameKind::await)
          await_lane(frame);
        else
          throw wire::ProtocolError("frame of unknown kind");
      }
    } catch (const wire::ProtocolError& error) {
      end_session(kExitProtocol, "the client broke the protocol", error.what());
    }
    end_session(kExitClientGone, "client closed the connection");
  }

  void send_loop() {
    wire::Backoff backoff(kSpinUs, kNapUs);
    while (true) {
      if (send_what_is_due()) {
        backoff = wire::Backoff(kSpinUs, kNapUs);
      } else if (quiet()) {
        wait_for_news();
        backoff = wire::Backoff(kSpinUs, kNapUs);
      } else {
        backoff.step();
      }
    }
  }

  // One round of the sender; true when there was something.
  bool send_what_is_due() {
    collect();
    bool progress = send_errors();
    progress |= send_answers();
    progress |= send_host_request();
    progress |= send_marks();
    progress |= send_head();
    if (!flush()) end_session(kExitClientGone, "client closed the connection");
    return progress;
  }

 private:
  static void lane_ended(wire::Lanes::End how) {
    if (how == wire::Lanes::End::closed) end_session(kExitClientGone, "client closed the connection");
    end_session(kExitProtocol, "the client broke the protocol", "not data on a further connection");
  }

  void await_lane(const wire::Frame& frame) {
    const wire::Lanes::Arrival arrival = lanes_.arrival(socket_, frame);
    if (arrival == wire::Lanes::Arrival::lie) throw wire::ProtocolError("await of no connection");
    if (arrival == wire::Lanes::Arrival::gone) end_session(kExitClientGone, "client closed the connection");
  }

  void receive_data(const wire::Frame& frame) {
    if (frame.size > wire::kMaxDataPerFrame || !window_.holds_data(frame.offset, frame.size))
      throw wire::ProtocolError("data outside the window's data area");
    keep_until_sent(frame.offset, frame.size);
    if (!wire::read_all(socket_, window_.base + frame.offset, frame.size))
      end_session(kExitClientGone, "client closed the connection");
  }

  // Before anything is written there: what the kernel has yet to send from there must be what it was. A
  // client uses memory again only when it has what was in it, so the notice is here, or its card is about to
  // tell.
  void keep_until_sent(u64 offset, u64 size) {
    if (!zero_copy_.wait_for(offset, size))
      throw wire::ProtocolError("memory used again before its data was received");
  }

  void receive_slots(const wire::Frame& frame) {
    if (frame.count == 0 || frame.count > wire::kMaxSlotsPerFrame)
      throw wire::ProtocolError("bad slot count");
    slots_.resize(frame.count * sizeof(wire::Slot));
    if (!wire::read_all(socket_, slots_.data(), slots_.size()))
      end_session(kExitClientGone, "client closed the connection");
    for (u32 i = 0; i < frame.count; ++i) accept(slots_.data() + i * sizeof(wire::Slot));
    wire::Control& control = window_.control();
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (control.worker_sleeping.load(std::memory_order_relaxed) != 0) {
      control.doorbell.fetch_add(1, std::memory_order_release);
      wire::futex_wake(control.doorbell);
    }
  }

  void accept(const u8* bytes) {
    u64 sequence = 0;
    std::memcpy(&sequence, bytes, sizeof sequence);
    const u64 ticket = received_.load(std::memory_order_relaxed);
    if (sequence != ticket + 1) throw wire::ProtocolError("slots out of order");
    // The client may be kRingSlots ahead of the head that it has been told, which is never ahead of the real
    // one: more would overwrite what the dispatcher has yet to read, and a client that reads no answers would
    // have us remember ever more of them.
    if (ticket - sent_head_.load(std::memory_order_acquire) >= wire::kRingSlots)
      throw wire::ProtocolError("ring overrun");
    u8* slot = reinterpret_cast<u8*>(&window_.slot(ticket));
    std::memcpy(slot + sizeof sequence, bytes + sizeof sequence, sizeof(wire::Slot) - sizeof sequence);
    watch(window_.slot(ticket), ticket);
    const wire::Slot& accepted = window_.slot(ticket);
    if ((accepted.flags & wire::kBulkOut) != 0) keep_until_sent(accepted.bulk_offset, accepted.bulk_size);
    window_.control().tail.store(ticket + 1, std::memory_order_relaxed);
    received_.store(ticket + 1, std::memory_order_release);
    window_.slot(ticket).sequence.store(sequence, std::memory_order_release);
  }

  // Remembers what this slot will make known. Runs before the slot is visible to the dispatcher.
  void watch(const wire::Slot& slot, u64 ticket) {
    const std::lock_guard lock(mutex_);
    const bool data_with_mark = (slot.flags & wire::kBulkOut) != 0 && (slot.flags & wire::kMark) != 0;
    const auto watch_of = [&](u32 index, bool with_data) {
      Watch watch{ticket, index, slot.flags, 0, 0};
      if (!with_data || (slot.flags & wire::kBulkOut) == 0) return watch;
      if (!window_.holds_data(slot.bulk_offset, slot.bulk_size))
        throw wire::ProtocolError("bulk piece outside the window");
      watch.bulk_offset = slot.bulk_offset;
      watch.bulk_size = slot.bulk_size;
      return watch;
    };
    if ((slot.flags & wire::kMark) != 0) {
      if (slot.stream.index() >= wire::kWords) throw wire::ProtocolError("a mark without a word");
      news_marks_.push_back(watch_of(slot.stream.index(), true));
    }
    if ((slot.flags & wire::kReply) != 0) {
      if (slot.thread >= wire::kThreads) throw wire::ProtocolError("thread index out of range");
      news_answers_.push_back(watch_of(slot.thread, !data_with_mark));
    }
    fresh_ = true;
    news_.notify_one();
  }

  void collect() {
    const std::lock_guard lock(mutex_);
    fresh_ = false;
    for (const Watch& mark : news_marks_) marks_[mark.index].push_back(mark);
    answers_.insert(answers_.end(), news_answers_.begin(), news_answers_.end());
    news_marks_.clear();
    news_answers_.clear();
  }

  bool quiet() const {
    return answers_.empty() && marks_.empty() &&
           sent_head_.load() == received_.load(std::memory_order_acquire);
  }

  void wait_for_news() {
    std::unique_lock lock(mutex_);
    news_.wait_for(lock, std::chrono::milliseconds(kIdleWaitMs), [this] { return fresh_; });
  }

  void add(wire::FrameKind kind, u32 count, u64 offset, u64 size) {
    const wire::Frame frame{kind, count, offset, size};
    const size_t at = out_.size();
    out_.resize(at + sizeof frame);
    std::memcpy(out_.data() + at, &frame, sizeof frame);
  }

  // Sends what is buffered, then the piece, so that large data is never copied.
  void add_data(u64 offset, u64 size) {
    const u64 piece = window_.holds_data(offset, size) ? zero_copy_.open(0, offset, size) : 0;
    if (lanes_.takes(offset, size)) {
      if (!flush() || !lanes_.send(socket_, offset, size, piece))
        end_session(kExitClientGone, "client closed the connection");
      count_references(piece);
      return;
    }
    if (piece != 0 && !flush()) end_session(kExitClientGone, "client closed the connection");
    while (size > 0) {
      const u64 part = size < wire::kMaxDataPerFrame ? size : wire::kMaxDataPerFrame;
      if (piece != 0) {
        if (!zero_copy_.send_data_frame(0, window_, offset, part, piece))
          end_session(kExitClientGone, "client closed the connection");
      } else {
        add(wire::FrameKind::data, 0, offset, part);
        iovec pieces[2] = {{out_.data(), out_.size()}, {window_.base + offset, part}};
        if (!wire::send_all(socket_, pieces, 2)) end_session(kExitClientGone, "client closed the connection");
        out_.clear();
      }
      offset += part;
      size -= part;
    }
    count_references(piece);
  }

  // What the lanes are still at is counted with the next piece.
  void count_references(u64 piece) {
    if (piece == 0 || usage_ == nullptr) return;
    UsagePage::Counters& counters = usage_->counters;
    const wire::ZeroCopyTotals& totals = zero_copy_.totals();
    counters.zero_copy_bytes.store(totals.bytes.load(std::memory_order_relaxed), std::memory_order_relaxed);
    counters.zero_copy_refused.store(totals.refused.load(std::memory_order_relaxed),
                                     std::memory_order_relaxed);
  }

  bool flush() {
    if (out_.empty()) return true;
    iovec piece{out_.data(), out_.size()};
    const bool sent = wire::send_all(socket_, &piece, 1);
    out_.clear();
    return sent;
  }

  bool send_errors() {
    wire::Control& control = window_.control();
    bool any = false;
    if (control.async_error.load(std::memory_order_relaxed) != 0) {
      const u32 error = control.async_error.exchange(0, std::memory_order_acq_rel);
      add(wire::FrameKind::error, error, control.async_function.load(std::memory_order_relaxed), 0);
      any = true;
    }
    const u32 fatal = control.fatal_error.load(std::memory_order_acquire);
    if (fatal != sent_fatal_) {
      const wire::FaultOutput& output = window_.fault_output();
      add_data(wire::kFaultOutputOffset,
               offsetof(wire::FaultOutput, text) + output.printed_bytes + output.error_bytes);
      add(wire::FrameKind::fatal, fatal, 0, 0);
      sent_fatal_ = fatal;
      any = true;
    }
    return any;
  }

  bool send_answers() {
    bool any = false;
    for (auto next = answers_.begin(); next != answers_.end();) {
      const Watch watch = *next;
      const wire::ReplyBox& box = window_.reply(watch.index);
      const u64 done = box.done.load(std::memory_order_acquire);
      // A thread waits for its answer before it asks again. One that does not would have this queue wait for
      // ever, and grow.
      if (done > watch.ticket + 1)
        end_session(kExitProtocol, "the client broke the protocol", "two calls in one reply box");
      if (done != watch.ticket + 1) {
        ++next;
        continue;
      }
      send_errors();  // an error that came before this answer must not arrive after it
      const u64 at = wire::kReplyOffset + watch.index * sizeof(wire::ReplyBox);
      const bool in_bulk = (watch.flags & wire::kAnswerInBulk) != 0;
      if (watch.bulk_size != 0)
        add_data(watch.bulk_offset, in_bulk && box.size < watch.bulk_size ? box.size : watch.bulk_size);
      const u64 header = offsetof(wire::ReplyBox, status);
      add_data(at + header, offsetof(wire::ReplyBox, payload) - header + (in_bulk ? 0 : box.size));
      add(wire::FrameKind::store, 0, at, watch.ticket + 1);
      next = answers_.erase(next);
      any = true;
    }
    return any;
  }

  // Reads the words that are waited for until two readings agree. Then what one of them follows from, work of
  // another stream that its own waited for, is among them too: the client never sees an effect before its
  // cause.
  void read_words() {
    bool changed = !marks_.empty();
    for (int i = 0; changed && i < kMostReadings; ++i) {
      changed = false;
      for (const auto& [index, waiting] : marks_) {
        const u64 now = window_.word(index).value.load(std::memory_order_acquire);
        u64& before = reached_[index];
        changed = changed || now != before;
        before = now;
      }
    }
  }

  bool send_marks() {
    bool any = false;
    read_words();
    for (auto entry = marks_.begin(); entry != marks_.end();) {
      std::deque<Watch>& waiting = entry->second;
      const u64 reached = reached_[entry->first];
      // Told is only what was sent here: the word may already be past a mark that collect() has not seen,
      // whose data must come first.
      u64 told = 0;
      while (!waiting.empty() && waiting.front().ticket + 1 <= reached) {
        if (waiting.front().bulk_size != 0) {
          send_errors();
          add_data(waiting.front().bulk_offset, waiting.front().bulk_size);
        }
        told = waiting.front().ticket + 1;
        waiting.pop_front();
      }
      if (told != 0) {
        send_errors();
        add(wire::FrameKind::store, 0, wire::kWordsOffset + entry->first * sizeof(wire::Word), told);
        any = true;
      }
      entry = waiting.empty() ? marks_.erase(entry) : std::next(entry);
    }
    return any;
  }

  // Word 0 asks for a host function; the client looks at it while a mark is outstanding, and so do we.
  bool send_host_request() {
    const u64 request = window_.word(0).value.load(std::memory_order_acquire);
    if (request == sent_request_) return false;
    add(wire::FrameKind::store, 0, wire::kWordsOffset, request);
    sent_request_ = request;
    return true;
  }

  bool send_head() {
    const u64 head = window_.control().head.load(std::memory_order_acquire);
    if (head == sent_head_.load(std::memory_order_relaxed)) return false;
    send_errors();
    add(wire::FrameKind::store, 0, wire::kControlOffset + offsetof(wire::Control, head), head);
    sent_head_.store(head, std::memory_order_release);
    return true;
  }

  int socket_;
  wire::Window window_;
  UsagePage* const usage_;
  std::atomic<u64> received_{0};
  std::vector<u8> slots_;

  std::mutex mutex_;
  std::condition_variable news_;
  bool fresh_ = false;
  std::vector<Watch> news_marks_, news_answers_;

  // The sending thread's own.
  std::unordered_map<u32, std::deque<Watch>> marks_;  // by word, oldest first
  std::deque<Watch> answers_;                         // oldest first; one may overtake others (drawing.hpp)
  std::vector<u8> out_;
  std::unordered_map<u32, u64> reached_;  // the words, as read_words() found them
  std::atomic<u64> sent_head_{0};
  u64 sent_request_ = 0;
  u32 sent_fatal_ = 0;

  wire::ZeroCopy zero_copy_;
  wire::Lanes lanes_;
};

}  // namespace

void start_stream_mirror(int socket, const std::vector<int>& lanes, wire::Window window,
                         wire::ZeroCopyMode zero_copy, UsagePage* usage) {
  (new StreamMirror(socket, window, lanes, zero_copy, usage))->start();
}

}  // namespace gpupool::worker
