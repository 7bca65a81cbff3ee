// Threads that call the driver's launch for programs with several streams. One launch costs the driver 3.5 us
// (H100, driver 580), and it serves several threads at once, which a program of many threads uses; with the
// dispatcher alone such a program would be slower here than on the bare card.
//
// Order: launches of one stream go to one thread, in their order, and whatever else the client puts on that
// stream waits until they are issued (settle). What concerns more than its own stream waits for all of them.
// So the driver sees each stream's work in the client's order; between streams only events, the legacy stream
// and calls without a stream make order, and none of these pass a launch that is still here.
//
// A program that launches on one stream at a time never gets here: the dispatcher does it at once. One that
// puts other work behind each few launches would only be slowed down, as the dispatcher then waits for the
// crew and both for the driver's lock. So a burst begins after a row of launches with nothing between them,
// and ends when launches become too few for a wait.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "hostd/worker/worker.hpp"
#include "wire/cpp/launch_message.hpp"

namespace gpupool::worker {

// A launch that is checked and looked up: what is left is the driver's call.
struct ReadyLaunch {
  static constexpr u32 kMostBytes = wire::kInlineBytes;
  CUfunction function = nullptr;
  CUstream stream = nullptr;
  CUcontext context = nullptr;
  u64 epoch = 0;  // of contexts; see LaunchCrew::contexts_changed
  u32 grid[3] = {};
  u32 block[3] = {};
  u32 shared_bytes = 0;
  u32 bytes = 0;
  alignas(128) u8 parameters[kMostBytes];  // tensor maps need 64 bytes of alignment
};

// All but `work` belongs to the dispatcher's thread.
class LaunchCrew {
 public:
  explicit LaunchCrew(u32 threads) : threads_(threads) {}

  // Whether a launch on this stream goes to the crew: it is at work, or there have been many launches in a
  // row and the next message is one on another stream, so that two can be issued at once. `next` is the slot
  // behind, which may not be there. Asked for each launch, in order.
  bool wants(wire::Handle stream, const wire::Slot& next, u64 next_ticket);
  // Room for a launch on the stream, to be filled in before push(). Waits for a place when its thread is far
  // behind.
  ReadyLaunch& prepare(const DriverApi& driver, wire::Handle stream);
  void push(wire::Handle stream);

  // Whether there may be launches that are not issued yet.
  bool active() const { return active_; }
  bool all_issued() const;
  // Returns once those of that stream, or of all, are issued.
  void settle(wire::Handle stream);
  void settle_all();
  // A context was made current, made or destroyed behind the driver's back: its address may mean another.
  void contexts_changed() { ++epoch_; }
  // The first error since the last call, or CUDA_SUCCESS.
  CUresult take_error();

 private:
  static constexpr u64 kPlaces = 64;
  struct Member {
    alignas(64) std::atomic<u64> pushed{0};  // also what it sleeps on
    alignas(64) std::atomic<u64> issued{0};
    alignas(64) std::atomic<u32> sleeping{0};
    std::array<ReadyLaunch, kPlaces> places;
  };
  struct Last {
    u32 member = 0;
    u64 number = 0;  // pushed's value with that stream's newest launch; 0: none
  };

  void start(const DriverApi& driver);
  static u64 backlog(const Member& member);
  void work(const DriverApi& driver, Member& member);
  bool pending(wire::Handle stream) const;
  void wait_issued(const Member& member, u64 number) const;

  const u32 threads_;
  std::vector<std::unique_ptr<Member>> members_;
  std::vector<Last> last_;  // by index of stream
  bool active_ = false;
  u64 burst_ = 0;        // launches since it became active
  u64 burst_waits_ = 0;  // how often other work waited for one of them
  u64 in_row_ = 0;       // launches with nothing between them, up to the newest
  u64 next_in_row_ = 0;  // what next_ticket will be if the next message is a launch, too
  u64 epoch_ = 1;
  std::atomic<CUresult> error_{CUDA_SUCCESS};
};

}  // namespace gpupool::worker
