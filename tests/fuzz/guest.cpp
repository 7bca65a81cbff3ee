// Target: the client's end of a stream, which believes no host either. The first byte chooses the connection,
// the session's own or a further one; the rest is what a worker sends on it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "guest/runtime/transport/stream.cpp"

using namespace gpupool;

extern "C" size_t LLVMFuzzerMutate(u8* data, size_t size, size_t max_size);

namespace {

constexpr u64 kGuardBytes = 2 * wire::kMaxDataPerFrame;  // nothing that a frame may carry jumps over it
constexpr u32 kWatchedBoxes = 16;

wire::Window g_window;

void make_window() {
  void* memory = mmap(nullptr, wire::kWindowMinBytes + 2 * kGuardBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  g_window = {static_cast<u8*>(memory) + kGuardBytes, wire::kWindowMinBytes};
  mprotect(g_window.base, g_window.size, PROT_READ | PROT_WRITE);
  // What this client has sent is nobody else's to write.
  mprotect(g_window.base + wire::kRingOffset, wire::kReplyOffset - wire::kRingOffset, PROT_READ);
}

void require(bool holds) {
  if (!holds) std::abort();
}

// A host moves what is its own to move, and nothing beside it.
void check_window() {
  const wire::Control& control = g_window.control();
  require(control.tail.load() == 0 && control.host_released.load() == 0);
  require(control.doorbell.load() == 0 && control.worker_sleeping.load() == 0);
  for (u32 i = 0; i < kWatchedBoxes; ++i) require(g_window.reply(i).sleeping.load() == 0);
}

void receive(int socket) {
  guest::Stream stream(socket, {}, nullptr, "fuzz", g_window, wire::ZeroCopyMode::off);
  stream.receive_loop();
  require(!stream.peer_alive());
  // The destructor rings for the sender, which does not run here.
}

void receive_on_lane(int socket) {
  std::atomic<bool> ended{false};
  wire::ZeroCopy nothing_sent(wire::ZeroCopyMode::off, -1, {socket});
  wire::Lanes lanes(g_window, {socket}, nothing_sent, [&](wire::Lanes::End) {
    ended.store(true);
    ended.notify_all();
  });
  lanes.start();
  ended.wait(false);
  lanes.stop();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  if (g_window.base == nullptr) make_window();
  if (size == 0) return 0;
  madvise(g_window.base, g_window.size, MADV_DONTNEED);
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) std::abort();
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  if (size > 1 && write(ends[0], data + 1, size - 1) < 0) std::abort();
  shutdown(ends[0], SHUT_WR);
  if ((data[0] & 1) == 0)
    receive(ends[1]);
  else
    receive_on_lane(ends[1]);
  g_window.control().doorbell.store(0);
  check_window();
  close(ends[0]);
  return 0;
}

// Most numbers are places in the window: a frame is moved to where something begins or ends, now and then.
extern "C" size_t LLVMFuzzerCustomMutator(u8* data, size_t size, size_t max_size, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 3 != 0 || size < 1 + sizeof(wire::Frame)) return size;
  static constexpr u64 kPlaces[] = {
      wire::kControlOffset,     offsetof(wire::Control, head),
      wire::kWordsOffset,       wire::kRingOffset,
      wire::kReplyOffset,       wire::kReplyOffset + offsetof(wire::ReplyBox, status),
      wire::kFaultOutputOffset, wire::kStagingOffset,
      wire::kWindowMinBytes,    ~u64{0}};
  const size_t frames = (size - 1) / sizeof(wire::Frame);
  u8* const at = data + 1 + seed / 3 % frames * sizeof(wire::Frame);
  wire::Frame frame;
  std::memcpy(&frame, at, sizeof frame);
  const u64 place = kPlaces[seed / 64 % std::size(kPlaces)];
  frame.offset = place + seed / 1024 % 9 * 8 - 32;
  frame.kind = static_cast<wire::FrameKind>(seed / 4096 % 8);
  if (frame.kind == wire::FrameKind::data) frame.size %= 2 * (size - 1);
  std::memcpy(at, &frame, sizeof frame);
  return size;
}
