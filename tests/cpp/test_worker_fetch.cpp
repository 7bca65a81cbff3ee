// Double fetches: whatever the worker reads of the window it must read once, or a client could change it
// between the check and the use. Every message is served twice, by a client that leaves its memory alone and
// by one that inverts it as it is read; the worker must do the same both times.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz_entries.hpp"  // generated
#include "hostd/worker/dispatcher.hpp"
#include "hostd/worker/log.hpp"
#include "tests/cpp/fetch_watch.hpp"
#include "tests/fuzz/program.hpp"

namespace gpupool::test {
namespace {

using wire::Function;

// What the driver was called with, pointers apart: those are into private memory or differ from run to run.
std::vector<u64> g_calls;
u64 g_next_object = 0;

template <typename T>
concept Incomplete = !requires { sizeof(T); };

template <typename T>
void note(const T& argument) {
  if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
    u64 number = 0;
    std::memcpy(&number, &argument, sizeof argument);
    g_calls.push_back(number);
  }
}
template <Incomplete T>
void note(T** object) {
  if (object != nullptr) *object = reinterpret_cast<T*>(g_next_object += 16);
}

worker::DriverApi noting_driver() {
  worker::DriverApi driver;
  worker::each_driver_function(driver, []<typename... A>(CUresult (*&function)(A...), const char*) {
    function = [](A... arguments) {
      g_calls.push_back(~u64{sizeof...(A)});
      (note(arguments), ...);
      return CUDA_SUCCESS;
    };
  });
  driver.cuFuncGetParamInfo = [](CUfunction, size_t index, size_t* offset, size_t* size) {
    *offset = 0;
    *size = 8;
    return index == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  driver.cuKernelGetParamInfo = [](CUkernel, size_t index, size_t* offset, size_t* size) {
    *offset = 0;
    *size = 8;
    return index == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
  driver.cuMemHostGetDevicePointer_v2 = [](CUdeviceptr* device, void* host, unsigned) {
    *device = reinterpret_cast<CUdeviceptr>(host);
    return CUDA_SUCCESS;
  };
  return driver;
}

wire::Window make_window() {
  void* memory = mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  return {static_cast<u8*>(memory), wire::kWindowMinBytes};
}

// All that a session did: driver calls, answers, how it ended.
struct Trace {
  std::vector<u64> calls;
  std::vector<std::vector<u8>> answers;
  std::string end;
  u64 reads = 0;
};

class Session {
 public:
  Session(wire::Window window, bool hostile) : hostile_(hostile) {
    worker_.driver = noting_driver();
    worker_.window = window;
    worker_.devices = {0, 1};
    worker_.parcels.patience = std::chrono::milliseconds(0);
    g_calls.clear();
    g_next_object = 0x1000;
    madvise(window.base, window.size, MADV_DONTNEED);
  }

  Trace play(const fuzz::Program& program) {
    try {
      for (const fuzz::Step& step : program.steps) {
        const u64 offset = fuzz::widen(step.bulk_offset);
        if (step.message)
          send(step);
        else if (!step.bytes.empty() && worker_.window.holds_data(offset, step.bytes.size()))
          std::copy(step.bytes.begin(), step.bytes.end(), worker_.at(offset));
      }
    } catch (const std::exception& error) {
      trace_.end = error.what();
    }
    trace_.calls = g_calls;
    return trace_;
  }

 private:
  void send(const fuzz::Step& step) {
    wire::Slot& slot = worker_.window.slot(ticket_);
    slot.function = step.function;
    slot.flags = step.flags;
    slot.thread = fuzz::widen(step.thread);
    slot.context = fuzz::widen(step.context);
    slot.stream.bits = step.stream;
    slot.bulk_offset = fuzz::widen(step.bulk_offset);
    slot.bulk_size = fuzz::widen(step.bulk_size);
    slot.inline_size = static_cast<u32>(step.bytes.size());
    std::copy(step.bytes.begin(), step.bytes.end(), slot.payload);
    slot.sequence.store(++ticket_);
    if (hostile_) {
      // The ring, the answers and all data; words and the control block only the worker writes.
      const FetchWatch watch(worker_.window.base + wire::kRingOffset,
                             worker_.window.size - wire::kRingOffset);
      dispatcher_.serve(ticket_ - 1);
      trace_.reads += watch.reads();
    } else {
      dispatcher_.serve(ticket_ - 1);
    }
    const wire::ReplyBox& box = worker_.window.reply(slot.thread % wire::kThreads);
    trace_.answers.emplace_back(box.payload, box.payload + std::min<u64>(box.size, wire::kReplyBytes));
    trace_.answers.back().push_back(static_cast<u8>(box.status));
  }

  worker::Worker worker_;
  worker::Dispatcher dispatcher_{worker_};
  bool hostile_;
  u64 ticket_ = 0;
  Trace trace_;
};

fuzz::Step message(Function function, std::vector<u8> payload) {
  fuzz::Step step;
  step.message = true;
  step.function = static_cast<u16>(function);
  step.flags = wire::kReply;
  step.context = 1;
  step.stream = wire::Handle::make(wire::HandleKind::stream, 0, 1).bits;
  step.bytes = std::move(payload);
  return step;
}

template <typename... Values>
std::vector<u8> encoded(Values... values) {
  wire::Writer out;
  (out.put(values), ...);
  return {out.bytes().begin(), out.bytes().end()};
}

// A context and its stream, so that the messages after them get to their handlers.
fuzz::Program opened() {
  using wire::Handle;
  using wire::HandleKind;
  fuzz::Program program;
  fuzz::Step retain = message(Function::cuDevicePrimaryCtxRetain,
                              encoded(Handle::make(HandleKind::context, 0, 1), i32{0}, u32{0}));
  retain.context = 0;
  retain.stream = 0;
  program.steps.push_back(retain);
  fuzz::Step adopt = message(Function::stream_adopt, encoded(Handle::make(HandleKind::stream, 0, 1), u32{1}));
  adopt.stream = 0;
  program.steps.push_back(adopt);
  return program;
}

// The payload in the window, where the client can still reach it.
void append_in_bulk(fuzz::Program& program, fuzz::Step step) {
  fuzz::Step data;
  data.bulk_offset = wire::kStagingOffset + 4096;
  data.bytes = step.bytes;
  step.flags |= wire::kBulkIn | wire::kPayloadInBulk;
  step.bulk_offset = data.bulk_offset;
  step.bulk_size = static_cast<u32>(step.bytes.size());
  step.bytes.clear();
  program.steps.push_back(data);
  program.steps.push_back(step);
}

u64 compare(wire::Window window, const fuzz::Program& program) {
  // Some things the worker does once in its life: the window's registration, a stream for clearing.
  Session(window, false).play(program);
  const Trace honest = Session(window, false).play(program);
  const Trace hostile = Session(window, true).play(program);
  CHECK(honest.calls == hostile.calls);
  CHECK(honest.answers == hostile.answers);
  CHECK(honest.end == hostile.end);
  return hostile.reads;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // their own reads of memory are not the worker's
#else
constexpr bool kSanitized = false;
#endif

}  // namespace

TEST_CASE("the watch notices whoever reads twice" * doctest::skip(kSanitized)) {
  const wire::Window window = make_window();
  volatile u8* const byte = window.base;
  *byte = 5;
  u8 first = 0;
  u8 second = 0;
  {
    const FetchWatch watch(window.base, 4096);
    first = *byte;
    second = *byte;
    CHECK(watch.reads() == 2);
  }
  CHECK(first == 5);
  CHECK(second == static_cast<u8>(~5));
  CHECK(*byte == 5);
  munmap(window.base, window.size);
}

TEST_CASE("no message is fetched twice" * doctest::skip(kSanitized)) {
  worker::configure_log({.lowest = static_cast<worker::LogLevel>(99)}, 0);
  const wire::Window window = make_window();
  for (const worker::FuzzEntry& entry : worker::kFuzzEntries) {
    CAPTURE(std::string(wire::function_name(entry.function)));
    fuzz::Program inlined = opened();
    std::vector<u8> payload = entry.seed();
    if (payload.empty()) payload.resize(64, 1);
    fuzz::Step step = message(entry.function, payload);
    if (step.bytes.size() > wire::kInlineBytes) step.bytes.resize(wire::kInlineBytes);
    inlined.steps.push_back(step);
    CHECK(compare(window, inlined) > 0);
    fuzz::Program in_bulk = opened();
    append_in_bulk(in_bulk, step);
    CHECK(compare(window, in_bulk) > 0);
  }
  munmap(window.base, window.size);
}

// What the fuzzer has found interesting: among it are images, launches and graphs that get far.
TEST_CASE("no message of the fuzzer's corpus is fetched twice" * doctest::skip(kSanitized)) {
  worker::configure_log({.lowest = static_cast<worker::LogLevel>(99)}, 0);
  const wire::Window window = make_window();
  for (const char* name : {"decoder", "session"}) {
    const std::filesystem::path folder = std::string(GPUPOOL_SOURCE_DIR) + "/tests/fuzz/corpus/" + name;
    if (!std::filesystem::exists(folder)) continue;
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      CAPTURE(file.path().filename().string());
      std::ifstream in(file.path(), std::ios::binary);
      const std::vector<char> text{std::istreambuf_iterator<char>(in), {}};
      fuzz::Program program = fuzz::parse({reinterpret_cast<const u8*>(text.data()), text.size()});
      if ((program.settings & 1) != 0) {
        fuzz::Program whole = opened();
        whole.steps.insert(whole.steps.end(), program.steps.begin(), program.steps.end());
        program = whole;
      }
      compare(window, program);
    }
  }
  munmap(window.base, window.size);
}

}  // namespace gpupool::test
