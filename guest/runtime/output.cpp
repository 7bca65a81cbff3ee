// What kernels print, on its way to the program's standard output and standard error.
//
// The driver prints within its own synchronisations, in the worker; ours only read memory. So a session whose
// code prints asks the worker after each wait. Most code does not print, and the worker says so once it has
// looked: then nothing is asked.
#include <cstdio>
#include <mutex>
#include <vector>

#include "guest/runtime/message.hpp"
#include "guest/runtime/session.hpp"

namespace gpupool::guest {
namespace {

constexpr u32 kRoom = 64u << 10;
constexpr u32 kPrintsNothing = 0;  // worker::Printing::no

// Through stdio, so that it comes after what the program itself has printed there before; and at once, as a
// program that waits for its kernels expects.
void write_out(FILE* file, const char* text, u64 size) {
  if (size == 0) return;
  // A closed stdout is the program's choice; there is nowhere else to say it.
  [[maybe_unused]] const size_t written = std::fwrite(text, 1, size, file);
  std::fflush(file);
}

wire::Handle stream_of(u32 word) {
  wire::Handle found;
  g_streams.each([&](const Stream& each) {
    if (each.handle.index() == word) found = each.handle;
  });
  return found;
}

}  // namespace

void Session::take_output(u32 word) {
  static auto& mutex = *new std::mutex();  // programs wait in exit handlers too
  const std::lock_guard lock(mutex);
  const u64 loads = loads_.load(std::memory_order_acquire);
  wire::Handle stream = stream_of(word);
  std::vector<char> text(kRoom);
  bool more = true;
  while (more) {
    Call call(wire::Function::output_take);
    call.leave_kept();  // it asks nothing of memory, and may ask at every wait
    call.put(stream);
    call.put<u32>(kRoom);
    call.expect_answer(kRoom + 64);
    if (call.wait() != CUDA_SUCCESS)
      return;  // a fault: what waits next tells, and what is printed comes with it
    if (call.get<u32>() == kPrintsNothing) silent_loads_.store(loads, std::memory_order_release);
    more = call.get<u32>() != 0;
    const u64 size = call.get_array(text.data(), text.size());
    write_out(stdout, text.data(), size < text.size() ? size : text.size());
    stream = {};  // once is enough
  }
}

// A fault ends the session, so nothing can be asked for any more: the worker has put it into the window. It
// is not to be trusted with our memory.
void Session::write_fault_output() const {
  const wire::FaultOutput& output = window_.fault_output();
  const u64 printed = output.printed_bytes;
  const u64 errors = output.error_bytes;
  if (printed > wire::kFaultTextBytes || errors > wire::kFaultTextBytes - printed) return;
  write_out(stdout, output.text, printed);
  write_out(stderr, output.text + printed, errors);
}

}  // namespace gpupool::guest
