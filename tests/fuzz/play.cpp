#include "tests/fuzz/play.hpp"

#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "hostd/worker/dispatcher.hpp"
#include "worker_dispatch.hpp"  // generated

namespace gpupool::fuzz {
namespace {

using wire::Function;
using wire::Handle;
using wire::HandleKind;

// How often each function was sent, was no breach of the protocol, and succeeded. With GPUPOOL_FUZZ_COUNTS
// naming a file they are written there when the process ends.
struct Count {
  u64 sent = 0, kept = 0, succeeded = 0;
};
std::array<Count, 0x1'0000> g_counts;

void write_counts() {
  std::FILE* out = std::fopen(std::getenv("GPUPOOL_FUZZ_COUNTS"), "a");
  if (out == nullptr) return;
  for (u32 i = 0; i < worker::kHandlerCount; ++i)
    if (worker::kHandlers[i] != nullptr)
      std::fprintf(out, "%s %llu %llu %llu\n", wire::function_name(static_cast<Function>(i)),
                   static_cast<unsigned long long>(g_counts[i].sent),
                   static_cast<unsigned long long>(g_counts[i].kept),
                   static_cast<unsigned long long>(g_counts[i].succeeded));
  std::fclose(out);
}

class Client {
 public:
  explicit Client(Harness& harness) {
    worker_.driver = harness.driver;
    worker_.window = harness.window;
    worker_.devices = harness.devices;
    worker_.parcels.patience = std::chrono::milliseconds(0);
  }

  // False when the session is over.
  bool send(const Step& step) {
    alignas(64) u8 bytes[sizeof(wire::Slot)] = {};
    auto& slot = *reinterpret_cast<wire::Slot*>(bytes);
    slot.function = step.function;
    slot.flags = step.flags;
    slot.thread = widen(step.thread);
    slot.context = widen(step.context);
    slot.stream.bits = step.stream;
    slot.bulk_offset = widen(step.bulk_offset);
    slot.bulk_size = widen(step.bulk_size);
    slot.inline_size = static_cast<u32>(step.bytes.size());
    if (!step.bytes.empty()) std::memcpy(slot.payload, step.bytes.data(), step.bytes.size());
    Count& count = g_counts[step.function];
    ++count.sent;
    try {
      dispatcher_.execute(slot, ticket_++);
    } catch (const std::exception&) {
      return false;  // main.cpp ends the session
    }
    ++count.kept;
    if ((step.flags & wire::kReply) != 0 && worker_.window.reply(slot.thread).status == CUDA_SUCCESS)
      ++count.succeeded;
    return true;
  }

  void write(const Step& step) {
    const u64 offset = widen(step.bulk_offset);
    if (!step.bytes.empty() && worker_.window.holds_data(offset, step.bytes.size()))
      std::memcpy(worker_.at(offset), step.bytes.data(), step.bytes.size());
  }

  template <typename... Values>
  bool send_values(u32 context, Function function, Values... values) {
    Step step;
    step.message = true;
    step.function = static_cast<u16>(function);
    step.flags = wire::kReply;
    step.context = static_cast<u16>(context);
    wire::Writer out;
    (out.put(values), ...);
    step.bytes.assign(out.bytes().begin(), out.bytes().end());
    return send(step);
  }

  void retain() {
    send_values(0, Function::cuDevicePrimaryCtxRetain, Handle::make(HandleKind::context, 0, 1), i32{0},
                u32{0});
  }

  // What every program begins with: a context, its implicit streams and one more, an event.
  void open() {
    retain();
    send_values(1, Function::stream_adopt, Handle::make(HandleKind::stream, 0, 1), u32{1});
    send_values(1, Function::cuStreamCreateWithPriority, Handle::make(HandleKind::stream, 0, 2), u32{1},
                i32{0});
    send_values(1, Function::cuEventCreate, Handle::make(HandleKind::event, 0, 1), u32{0});
  }

  // Destroys what is left, by messages: the tables hold live objects only, or the driver complains.
  void close() {
    std::vector<Handle> capturing;
    worker_.streams.each([&](Handle handle, const worker::StreamEntry& entry) {
      if (entry.capturing) capturing.push_back(handle);
    });
    for (const Handle handle : capturing) {
      Step end;
      end.message = true;
      end.function = static_cast<u16>(Function::cuStreamEndCapture);
      end.stream = handle.bits;
      end.bytes = {1, 0, 0, 0};
      send(end);
    }
    for (int i = 0; i < 2; ++i) {  // child graphs go with their parents, in whatever order they come
      destroy(worker_.graph_execs, Function::cuGraphExecDestroy);
      destroy(worker_.graphs, Function::cuGraphDestroy);
    }
    destroy(worker_.libraries, Function::cuLibraryUnload);
    destroy(worker_.link_states, Function::cuLinkDestroy);
    destroy(worker_.mem_pools, Function::cuMemPoolDestroy);
    destroy(worker_.mem_allocations, Function::cuMemRelease);
    std::vector<Handle> contexts;
    worker_.contexts.each([&](Handle handle, CUcontext) { contexts.push_back(handle); });
    for (const Handle handle : contexts) send_values(0, Function::cuCtxDestroy_v2, handle);
  }

 private:
  template <typename Table>
  void destroy(Table& table, Function function) {
    std::vector<Handle> handles;
    table.each([&](Handle handle, auto&) { handles.push_back(handle); });
    u32 context = 0;
    worker_.contexts.each([&](Handle each, CUcontext) { context = each.index(); });
    for (const Handle handle : handles) send_values(context, function, handle);
  }

  worker::Worker worker_;
  worker::Dispatcher dispatcher_{worker_};
  u64 ticket_ = 0;
};

void serve(Harness& harness, const Program& program) {
  if (harness.before_session != nullptr) harness.before_session(harness);
  {
    Client client(harness);
    if ((program.settings & 1) != 0) client.open();
    for (const Step& step : program.steps) {
      if (!step.message)
        client.write(step);
      else if (!client.send(step))
        break;
    }
    client.close();
  }
  if (harness.after_session != nullptr) harness.after_session(harness);
}

}  // namespace

wire::Window map_window() {
  if (std::getenv("GPUPOOL_FUZZ_COUNTS") != nullptr) std::atexit(write_counts);
  void* wanted = reinterpret_cast<void*>(wire::kWindowBase);
  void* got = mmap(wanted, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got != wanted) std::abort();
  return {static_cast<u8*>(got), wire::kWindowMinBytes};
}

void warm_up(Harness& harness) {
  Client(harness).retain();
}

void play(Harness& harness, const Program& program) {
  madvise(harness.window.base, harness.window.size, MADV_DONTNEED);  // a new window is zero
  if (harness.own_thread)
    std::thread([&] { serve(harness, program); }).join();
  else
    serve(harness, program);
}

}  // namespace gpupool::fuzz
