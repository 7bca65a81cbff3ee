// Executes the client's slots in ticket order. The only thread that calls the driver, but for launches of
// several streams at once (launch_crew.hpp).
//
// Invariant: a slot is copied out of the window once and only the copy is looked at; so is its payload.
#pragma once

#include <deque>
#include <vector>

#include "hostd/worker/activity.hpp"
#include "hostd/worker/gate.hpp"
#include "hostd/worker/worker.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {

class Dispatcher {
 public:
  explicit Dispatcher(Worker& worker)
      : worker_(worker),
        activity_(worker,
                  [this](u32 context) {
                    CUresult error = CUDA_SUCCESS;
                    return make_current(context, error);
                  }),
        gate_(worker, [this](u32 context) {
          CUresult error = CUDA_SUCCESS;
          return make_current(context, error);
        }) {}
  // Never returns: the process ends with the session. Throws wire::ProtocolError when the client breaks the
  // protocol.
  [[noreturn]] void run();
  // Copies the slot `head` out of the window and executes it; false when it is not there yet.
  bool serve(u64 head);
  // Executes one slot (already copied). Public for the fuzzer and tests.
  void execute(const wire::Slot& slot, u64 ticket) {
    next_ = ticket + 1;
    if (!attempt(slot, ticket)) [[unlikely]]
      hold(slot, ticket);
  }

 private:
  // A message that waits for the compute lease (dispatcher_parked.cpp).
  struct Parked {
    u64 ticket = 0;
    alignas(64) u8 slot[sizeof(wire::Slot)];
  };

  // Executes one slot, unless it has to wait for the compute lease: then false, and nothing has happened.
  bool attempt(const wire::Slot& slot, u64 ticket);
  // Parks it, and goes on with the ring from next_ on, until nothing is parked any more.
  void hold(const wire::Slot& slot, u64 ticket);
  void park(const wire::Slot& slot, u64 ticket);
  bool may_pass(const wire::Slot& slot) const;
  void wait_for_lease();
  // Answers one message that waits for the GPU's drawing, if that is done by `until_ns`.
  void answer_waiting(u64 until_ns);
  void look_at_answers();
  bool is_there(u64 ticket) const {
    return worker_.window.slot(ticket).sequence.load(std::memory_order_acquire) == ticket + 1;
  }
  // Waits for the slot `head`: spins while work is likely, then sleeps until the client rings.
  void wait_for(u64 head);
  // Copies the counters to the page that hostd reads; `head` messages are executed.
  void publish_counters(u64 head, u64 now_ns);
  void check_stalled(u64 head, u64& open_since);
  void read_header(const wire::Slot& slot, Request& request);
  std::span<const u8> payload_of(const wire::Slot& slot, const Request& request);
  bool make_current(u32 context_index, CUresult& error);
  CUresult finish(Request& request, CUresult result);
  // Lets the crew issue what must come before this message; all it has when there is none.
  void settle_crew(const wire::Slot* next);
  void answer(const Request& request, CUresult result);
  void report(wire::Function function, u16 flags, CUresult result);

  Worker& worker_;
  u64 next_ = 0;  // the first slot that has not been looked at
  std::deque<Parked> parked_;
  u32 parked_ordered_ = 0;  // of them, those that nothing may pass
  wire::Writer answer_;
  std::vector<u8> payload_;  // private copy of a payload that came in bulk
  u32 current_context_ = 0;  // handle index; ~0 when unknown
  CUcontext current_ = nullptr;
  Activity activity_;
  Gate gate_;
  u64 busy_since_ns_ = wire::monotonic_ns();
  u64 busy_ns_ = 0;
  u64 looked_at_answers_ns_ = 0;
};

}  // namespace gpupool::worker
