// The further connections of a session over a byte stream. One connection is one thread's copying and one
// processor's checksums a side; several carry large data that much faster (docs/data-plane.md, Streams).
//
// Lanes carry data frames only. The main connection keeps the order: whoever sends a large piece lets every
// connection, the main one too, take chunks of it, and then says on the main one how many frames each lane
// has been given so far. The receiver reads no further there until those have come. Small pieces never come
// here.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "wire/cpp/futex.hpp"
#include "wire/cpp/hello.hpp"
#include "wire/cpp/stream_frame.hpp"
#include "wire/cpp/stream_io.hpp"
#include "wire/cpp/zero_copy.hpp"

namespace gpupool::wire {

inline constexpr u64 kLaneChunk = 256u << 10;      // what one connection takes at a time
inline constexpr u64 kLanesFrom = 2 * kLaneChunk;  // for less, waking a thread costs what it brings
inline constexpr u32 kLaneSpinUs = 100;            // a chunk's time on a fast network
inline constexpr u32 kLaneLookMs = 1000;           // how often a wait looks whether the peer is there at all

// Whether data may be written there. The only frames that a lane has.
inline bool valid_lane_frame(const Frame& frame, const Window& window) {
  return frame.kind == FrameKind::data && frame.size != 0 && frame.size <= kMaxDataPerFrame &&
         window.holds_data(frame.offset, frame.size);
}

enum class LaneRead { data, closed, lie };

// One frame of a lane, into the window, once nothing of what was there is on its way out any more.
inline LaneRead read_lane_frame(int fd, const Window& window, ZeroCopy& zero_copy) {
  Frame frame;
  if (!read_all(fd, &frame, sizeof frame)) return LaneRead::closed;
  if (!valid_lane_frame(frame, window) || !zero_copy.wait_for(frame.offset, frame.size)) return LaneRead::lie;
  return read_all(fd, window.base + frame.offset, frame.size) ? LaneRead::data : LaneRead::closed;
}

class Lanes {
 public:
  enum class End { closed, lie };  // the connection has ended; the peer sent what is no lane's frame
  enum class Arrival { here, gone, lie };

  // Takes the sockets over, which `zero_copy` knows behind the main one, in this order. `on_end` is called
  // from a lane's thread, perhaps from several.
  Lanes(Window window, const std::vector<int>& sockets, ZeroCopy& zero_copy, std::function<void(End)> on_end)
      : window_(window), zero_copy_(zero_copy), on_end_(std::move(on_end)) {
    for (const int socket : sockets) lanes_.push_back(std::make_unique<Lane>(socket, lanes_.size() + 1));
  }
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;
  ~Lanes() {
    stop();
    for (const auto& lane : lanes_)
      if (lane->socket >= 0) close(lane->socket);
  }

  // Two threads a lane, which sleep until there is something for them.
  void start() {
    for (const auto& lane : lanes_) {
      lane->sender = std::thread([this, one = lane.get()] { send_loop(*one); });
      lane->receiver = std::thread([this, one = lane.get()] { receive_loop(*one); });
    }
  }

  // Ends the connections and waits for the threads.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (const auto& lane : lanes_)
      if (lane->socket >= 0) shutdown(lane->socket, SHUT_RDWR);
    for (const auto& lane : lanes_) {
      if (lane->sender.joinable()) lane->sender.join();
      if (lane->receiver.joinable()) lane->receiver.join();
    }
  }

  // Ends the connections from any thread: everybody who uses them comes back.
  void hang_up() {
    for (const auto& lane : lanes_) shutdown(lane->socket, SHUT_RDWR);
  }

  // In a forked child: the threads are not there.
  void abandon() {
    for (const auto& lane : lanes_) {
      close(lane->socket);
      lane->socket = -1;
      lane->sender.detach();
      lane->receiver.detach();
    }
  }

  bool takes(u64 offset, u64 size) const {
    return !lanes_.empty() && size >= kLanesFrom && window_.holds_data(offset, size);
  }

  // Sends a piece of the data area over every connection, then what the receiver has to await. Returns before
  // the lanes have sent all of it: the piece stays as it is until the receiver has had it, which is what its
  // owner waits for anyway. `piece` is zero_copy's number for it. One thread only. False when the connection
  // is gone.
  bool send(int main_socket, u64 offset, u64 size, u64 piece) {
    {
      const std::lock_guard lock(mutex_);
      next_ = offset;
      end_ = offset + size;
      piece_ = piece;
    }
    work_.notify_all();
    for (u64 at = 0, part = 0; claim(nullptr, at, part);)
      if (!zero_copy_.send_data_frame(0, window_, at, part, piece)) return false;
    Frame awaits[kMaxLanes];
    u32 count = 0;
    {
      const std::lock_guard lock(mutex_);
      for (u32 i = 0; i < lanes_.size(); ++i) {
        Lane& lane = *lanes_[i];
        if (lane.claimed == lane.announced) continue;
        lane.announced = lane.claimed;
        awaits[count++] = Frame{FrameKind::await, i + 1, 0, lane.claimed};
      }
    }
    iovec told{awaits, count * sizeof(Frame)};
    return count == 0 || send_all(main_socket, &told, 1);
  }

  // Waits for what an `await` frame names. It ends with the session: when a lane has ended, or the peer is
  // gone from the main connection.
  Arrival arrival(int main_socket, const Frame& frame) {
    if (frame.count == 0 || frame.count > lanes_.size()) return Arrival::lie;
    Lane& lane = *lanes_[frame.count - 1];
    const u64 start = Backoff::spare_cores() ? monotonic_ns() : 0;
    while (start != 0 && monotonic_ns() - start < u64{kLaneSpinUs} * 1000) {
      if (lane.received.load(std::memory_order_acquire) >= frame.size) return Arrival::here;
      for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
    }
    while (true) {
      lane.awaited.store(1, std::memory_order_seq_cst);
      const u64 received = lane.received.load(std::memory_order_seq_cst);
      if (received >= frame.size || ended_.load(std::memory_order_acquire)) break;
      futex_wait(lane.received, received, kLaneLookMs);
      if (has_left(main_socket)) break;
    }
    lane.awaited.store(0, std::memory_order_relaxed);
    return lane.received.load(std::memory_order_acquire) >= frame.size ? Arrival::here : Arrival::gone;
  }

 private:
  struct Lane {
    Lane(int fd, size_t place) : socket(fd), number(place) {}
    int socket;
    const size_t number;  // of the session's connections, the main one being 0
    std::thread sender, receiver;
    u64 claimed = 0;               // frames that it has been given to send; under mutex_
    u64 announced = 0;             // of these, the receiver knows
    std::atomic<u64> received{0};  // frames; the low half is a futex
    std::atomic<u32> awaited{0};   // somebody is, or is about to be, in futex wait on `received`
  };

  static bool has_left(int socket) {
    pollfd one{socket, POLLRDHUP, 0};
    // POLLERR alone are the kernel's notices (zero_copy.hpp); an error of the connection hangs up, too.
    return poll(&one, 1, 0) > 0 && (one.revents & (POLLRDHUP | POLLHUP | POLLNVAL)) != 0;
  }

  // The next chunk of the piece that is being sent, for a lane or for the main connection.
  bool claim(Lane* lane, u64& at, u64& part) {
    const std::lock_guard lock(mutex_);
    return take(lane, at, part);
  }
  bool take(Lane* lane, u64& at, u64& part) {
    if (next_ == end_) return false;
    at = next_;
    part = end_ - next_ < kLaneChunk ? end_ - next_ : kLaneChunk;
    next_ += part;
    if (lane != nullptr) ++lane->claimed;
    return true;
  }

  void send_loop(Lane& lane) {
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return stopping_ || next_ != end_; });
      if (stopping_) return;
      u64 at = 0, part = 0;
      take(&lane, at, part);
      const u64 piece = piece_;
      lock.unlock();
      if (!zero_copy_.send_data_frame(lane.number, window_, at, part, piece)) return end(End::closed);
      lock.lock();
    }
  }

  void receive_loop(Lane& lane) {
    LaneRead read;
    while ((read = read_lane_frame(lane.socket, window_, zero_copy_)) == LaneRead::data) {
      lane.received.fetch_add(1, std::memory_order_seq_cst);
      if (lane.awaited.load(std::memory_order_seq_cst) != 0) futex_wake(lane.received);
    }
    end(read == LaneRead::lie ? End::lie : End::closed);
  }

  void end(End how) {
    ended_.store(true, std::memory_order_release);
    for (const auto& lane : lanes_) futex_wake(lane->received);
    on_end_(how);
  }

  Window window_;
  ZeroCopy& zero_copy_;
  std::function<void(End)> on_end_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::mutex mutex_;
  std::condition_variable work_;
  u64 next_ = 0, end_ = 0;  // what is left of the piece that is being sent
  u64 piece_ = 0;           // which that is
  bool stopping_ = false;
  std::atomic<bool> ended_{false};
};

}  // namespace gpupool::wire
