// Which thread of the client has sent, as the dispatcher notes it: alone is who has sent for a while, and
// nobody who has not.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include "hostd/worker/dispatcher.hpp"
#include "hostd/worker/senders.hpp"

namespace gpupool::worker {

TEST_CASE("A thread is alone when no other has sent for a while") {
  g_senders = {};
  Worker worker;
  worker.window = {static_cast<u8*>(mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
                   wire::kWindowMinBytes};
  Dispatcher dispatcher{worker};
  u64 ticket = 1000;
  const auto send = [&](u32 thread, u64 times) {
    wire::Slot slot{};
    slot.function = static_cast<u16>(wire::Function::ping);
    slot.flags = wire::kReply;
    slot.thread = thread;
    for (u64 i = 0; i < times; ++i) dispatcher.execute(slot, ticket++);
    return g_senders.is_alone(ticket - 1);
  };
  for (const u32 thread : {wire::kThreads, ~0u}) CHECK_THROWS_AS(send(thread, 1), wire::ProtocolError);
  CHECK_FALSE(send(3, Senders::kAlone));
  CHECK(send(3, 1));
  CHECK_FALSE(send(5, 1));
  CHECK_FALSE(send(3, Senders::kAlone));
  CHECK(send(3, 1));
  for (int i = 0; i < 1000; ++i) CHECK_FALSE(send(i % 2 == 0 ? 5 : 3, 1));
  CHECK_THROWS_AS(send(wire::kThreads, 1), wire::ProtocolError);
  CHECK_FALSE(send(3, 1));
  munmap(worker.window.base, worker.window.size);
  g_senders = {};
}

}  // namespace gpupool::worker
