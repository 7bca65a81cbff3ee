// Target: the worker's end of a stream. The input is what a client sends after its Hello; then the mirror
// sends back what the slots ask for. The same bytes are then read as a further connection's.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "hostd/worker/log.hpp"

namespace gpupool::worker {

// The one seam: a session's end must not be the fuzzer's.
struct SessionEnded {};
void end_session(int, std::string_view, std::string_view) {
  throw SessionEnded{};
}

}  // namespace gpupool::worker

#include "hostd/worker/stream_mirror.cpp"

using namespace gpupool;

extern "C" size_t LLVMFuzzerMutate(u8* data, size_t size, size_t max_size);

namespace {

wire::Window g_window;

void protect(int protection) {
  // A client's frames reach the ring and the data area, never words, answers or what the worker says of
  // itself.
  mprotect(g_window.base + wire::kWordsOffset, wire::kRingOffset - wire::kWordsOffset, protection);
  mprotect(g_window.base + wire::kReplyOffset, wire::kStagingOffset - wire::kReplyOffset, protection);
}

template <typename F>
void until_end(F work) {
  try {
    work();
  } catch (const worker::SessionEnded&) {
    return;
  }
}

void receive(worker::StreamMirror& mirror) {
  protect(PROT_READ);
  until_end([&] { mirror.receive_loop(); });
  protect(PROT_READ | PROT_WRITE);
}

// The first end has said `data` and will say no more.
void connect(int (&ends)[2], const u8* data, size_t size) {
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) std::abort();
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  if (size != 0 && write(ends[0], data, size) < 0) std::abort();
  shutdown(ends[0], SHUT_WR);
}

// Answers and marks everything, as a worker does that has executed all slots.
void send(worker::StreamMirror& mirror, int socket) {
  const u64 tail = g_window.control().tail.load();
  for (u64 ticket = 0; ticket < tail; ++ticket) {
    const wire::Slot& slot = g_window.slot(ticket);
    if ((slot.flags & wire::kMark) != 0) g_window.word(slot.stream.index()).value.store(ticket + 1);
    if ((slot.flags & wire::kReply) == 0) continue;
    wire::ReplyBox& box = g_window.reply(slot.thread);
    box.size = static_cast<u32>(ticket % wire::kReplyBytes);
    box.done.store(ticket + 1);
  }
  g_window.control().async_error.store(tail > 2 ? 1 : 0);
  g_window.control().head.store(tail);
  fcntl(socket, F_SETFL, O_NONBLOCK);  // a client that does not read: the mirror takes it for gone
  until_end([&] {
    while (mirror.send_what_is_due()) continue;
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  if (g_window.base == nullptr) {
    void* memory = mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    g_window = {static_cast<u8*>(memory), wire::kWindowMinBytes};
  }
  madvise(g_window.base, g_window.size, MADV_DONTNEED);
  int ends[2];
  connect(ends, data, size);
  {
    worker::StreamMirror mirror(ends[1], g_window);
    receive(mirror);
    send(mirror, ends[1]);
  }
  for (const int end : ends) close(end);
  connect(ends, data, size);
  protect(PROT_READ);
  wire::ZeroCopy nothing_sent(wire::ZeroCopyMode::off, ends[1], {});
  while (wire::read_lane_frame(ends[1], g_window, nothing_sent) == wire::LaneRead::data) continue;
  protect(PROT_READ | PROT_WRITE);
  for (const int end : ends) close(end);
  return 0;
}

// Slots carry consecutive numbers, which a blind mutation breaks: mostly they are put right again.
extern "C" size_t LLVMFuzzerCustomMutator(u8* data, size_t size, size_t max_size, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 8 == 0) return size;
  u64 sequence = 0;
  for (size_t at = 0; at + sizeof(wire::Frame) <= size;) {
    wire::Frame frame;
    std::memcpy(&frame, data + at, sizeof frame);
    at += sizeof frame;
    if (frame.kind == wire::FrameKind::data) {
      at += frame.size < size ? frame.size : size;
    } else if (frame.kind == wire::FrameKind::slots) {
      for (u32 i = 0; i < frame.count && at + sizeof(u64) <= size; ++i, at += sizeof(wire::Slot)) {
        ++sequence;
        std::memcpy(data + at, &sequence, sizeof sequence);
      }
    }
  }
  return size;
}
