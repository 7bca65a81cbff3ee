// The thread that runs the program's host functions. See host_function.hpp.
#include "guest/runtime/manual/host_function.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/message.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest_api.hpp"  // generated
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {
namespace {

// After a host function, for the next one: to wake this thread costs the program's own one tens of
// microseconds in a virtual machine, and during a nap that is too long the GPU waits (docs/performance.md).
constexpr u32 kSpinUs = 2000;
constexpr u32 kSpinForJobsUs = 50;   // nobody waits for those
constexpr u32 kLongestNapUs = 1000;  // while something is outstanding

struct Waiter {
  u32 word = 0;
  u64 value = 0;
  std::vector<std::shared_ptr<HostCall>> calls;
  std::function<void()> job;
};

// Leaked on purpose, as the session: the thread may outlive static destructors.
struct HostThread {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Waiter> added;      // and not yet taken over by the thread
  std::atomic<u64> additions{0};  // ever: tells the thread that there are some, without the mutex
  std::unordered_map<u32, std::weak_ptr<HostCall>> calls;
  u32 next_id = 1;
  bool started = false;
};

HostThread& host_thread() {
  static auto& instance = *new HostThread();
  return instance;
}

thread_local bool t_in_host_function = false;

void run_call(HostCall& call, CUresult status) {
  t_in_host_function = true;
  call.ran = true;
  if (call.callback != nullptr) call.callback(call.stream, status, call.data);
  if (call.function != nullptr) call.function(call.data);
  t_in_host_function = false;
}

// The store is the message, not a slot: a dispatcher which is busy inside the driver cannot hold a host
// function back that the driver is waiting for.
void release(Session& session, u64 sequence) {
  wire::Control& control = session.window().control();
  control.host_released.store(sequence, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // a store with that order would lock the bus
  // Where memory is shared the worker looks there itself; the sender of a stream transport sleeps.
  if (!session.shared_memory()) session.ring_if_asleep();
}

// Serves the request in word 0 if it is new. True when it was.
bool serve_request(Session& session, u32& served) {
  const u64 request = session.word(0);
  const u32 sequence = static_cast<u32>(request >> 32);
  if (sequence == served) return false;
  served = sequence;
  if (const std::shared_ptr<HostCall> call = find_host_call(static_cast<u32>(request))) {
    run_call(*call, CUDA_SUCCESS);
  } else {
    log_line("the worker asked for a host function that does not exist");
  }
  release(session, sequence);
  return true;
}

// Takes over what was added since. True when host functions are among it. The thread spins: with a mutex in
// each turn the program's threads would sleep for it again and again.
bool take_added(HostThread& host, u64& taken, std::vector<Waiter>& waiters) {
  const u64 additions = host.additions.load(std::memory_order_acquire);
  if (additions == taken) return false;
  taken = additions;
  const std::lock_guard lock(host.mutex);
  const bool calls = std::ranges::any_of(host.added, [](const Waiter& one) { return !one.calls.empty(); });
  std::ranges::move(host.added, std::back_inserter(waiters));
  host.added.clear();
  return calls;
}

// Takes out the waiters that are done; all of them when the session has failed.
std::vector<Waiter> take_done(std::vector<Waiter>& waiters, const Session& session, bool failed) {
  std::vector<Waiter> done;
  for (size_t i = 0; i < waiters.size();) {
    Waiter& waiter = waiters[i];
    if (!failed && waiter.word != 0 && session.word(waiter.word) < waiter.value) {
      ++i;
      continue;
    }
    done.push_back(std::move(waiter));
    waiters.erase(waiters.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return done;
}

void finish(std::vector<Waiter>& done, CUresult status) {
  for (Waiter& waiter : done) {
    // cuda.h: a stream callback is told of the error; a host function is not called after one.
    for (const std::shared_ptr<HostCall>& call : waiter.calls)
      if (call->callback != nullptr && !call->ran && status != CUDA_SUCCESS) run_call(*call, status);
    if (waiter.job) waiter.job();
  }
  done.clear();  // may destroy user objects
}

void serve(HostThread& host) {
  u32 served = 0;
  u64 taken = 0;
  std::vector<Waiter> waiters;
  while (true) {
    {
      std::unique_lock lock(host.mutex);
      host.changed.wait(lock, [&] { return !host.added.empty(); });
    }
    wire::Backoff backoff(kSpinForJobsUs, kLongestNapUs);
    while (true) {
      Session* session = Session::current();
      if (session == nullptr) return;
      const bool expected = take_added(host, taken, waiters);
      const bool ran = serve_request(*session, served);
      const CUresult failed = backoff.elapsed_ns() > 5'000'000 ? session->check_alive() : session->failed();
      std::vector<Waiter> done = take_done(waiters, *session, failed != CUDA_SUCCESS);
      finish(done, failed);
      if (ran || expected) backoff = wire::Backoff(kSpinUs, kLongestNapUs);
      if (ran) continue;
      if (!waiters.empty())
        backoff.step();
      else if (!backoff.spin())
        break;
    }
  }
}

void add_waiter(Waiter waiter) {
  HostThread& host = host_thread();
  const std::lock_guard lock(host.mutex);
  host.added.push_back(std::move(waiter));
  host.additions.fetch_add(1, std::memory_order_release);
  if (!host.started) {
    // Signals are the program's: none of them may be delivered to our thread.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([&host] {
      prctl(PR_SET_TIMERSLACK, 1);  // of this thread: else Linux adds 50 us to each nap
      serve(host);
    }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    host.started = true;
  }
  host.changed.notify_one();
}

}  // namespace

HostCall::~HostCall() {
  HostThread& host = host_thread();
  const std::lock_guard lock(host.mutex);
  host.calls.erase(id);
}

std::shared_ptr<HostCall> make_host_call(CUhostFn function, void* data) {
  auto call = std::make_shared<HostCall>();
  call->function = function;
  call->data = data;
  HostThread& host = host_thread();
  const std::lock_guard lock(host.mutex);
  // Ids are never 0, and one in use is not given again after the counter has wrapped.
  do call->id = host.next_id++;
  while (call->id == 0 || host.calls.contains(call->id));
  host.calls.emplace(call->id, call);
  return call;
}

std::shared_ptr<HostCall> find_host_call(u32 id) {
  HostThread& host = host_thread();
  const std::lock_guard lock(host.mutex);
  const auto found = host.calls.find(id);
  return found == host.calls.end() ? nullptr : found->second.lock();
}

void expect_host_calls(u32 word, u64 value, std::vector<std::shared_ptr<HostCall>> calls) {
  add_waiter({word, value, std::move(calls), nullptr});
}

void run_when(u32 word, u64 value, std::function<void()> job) {
  add_waiter({word, value, {}, std::move(job)});
}

bool in_host_function() {
  return t_in_host_function;
}

namespace api {
namespace {

CUresult launch(CUstream handle, const std::shared_ptr<HostCall>& host_call) {
  if (in_host_function()) return CUDA_ERROR_NOT_PERMITTED;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  if (const CUresult result = check_legacy(*stream); result != CUDA_SUCCESS) return result;
  const std::shared_ptr<Capture> capture = capture_of(*stream);
  if (capture != nullptr && host_call->callback != nullptr) return refuse_capturing(*stream);
  Call call(wire::Function::cuLaunchHostFunc);
  call.on(*stream);
  call.put(host_call->id);
  if (capture != nullptr) {
    if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
    const std::lock_guard lock(capture_mutex());
    capture->contents->kept.push_back(host_call);
    note_followed_node();
    return CUDA_SUCCESS;
  }
  call.mark();
  if (const CUresult result = call.send(); result != CUDA_SUCCESS) return result;
  expect_host_calls(stream->handle.index(), call.ticket() + 1, {host_call});
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return launch(stream, make_host_call(function, data));
}

CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback callback, void* data, unsigned int flags) {
  if (callback == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;  // cuda.h: reserved, must be 0
  const std::shared_ptr<HostCall> call = make_host_call(nullptr, data);
  call->callback = callback;
  call->stream = stream;
  return launch(stream, call);
}

}  // namespace api
}  // namespace gpupool::guest
