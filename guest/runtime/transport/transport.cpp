#include "guest/runtime/transport/transport.hpp"

#include "wire/cpp/futex.hpp"

namespace gpupool::guest {

void Transport::ring(wire::Control& control) {
  control.doorbell.fetch_add(1, std::memory_order_release);
  wire::futex_wake(control.doorbell);
}

void Transport::sleep(wire::ReplyBox& box, u64 wanted, u32 timeout_ms) {
  const u64 seen = box.done.load(std::memory_order_acquire);
  if (seen == wanted) return;
  box.sleeping.store(1, std::memory_order_seq_cst);
  if (box.done.load(std::memory_order_acquire) != wanted) wire::futex_wait(box.done, seen, timeout_ms);
  box.sleeping.store(0, std::memory_order_relaxed);
}

}  // namespace gpupool::guest
