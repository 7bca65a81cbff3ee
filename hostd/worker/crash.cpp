#include "hostd/worker/crash.hpp"

#include <dlfcn.h>
#include <execinfo.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>

#include "hostd/worker/log.hpp"
#include "wire_functions.hpp"  // generated

namespace gpupool::worker {
namespace {

constexpr int kFrames = 24;
constexpr unsigned kPatienceSeconds = 2;

// Text of a fixed size: the heap may be what is broken.
class Text {
 public:
  template <typename... Values>
  void add(const char* format, Values... values) {
    if (used_ >= sizeof text_) return;
    const int wanted = std::snprintf(text_ + used_, sizeof text_ - used_, format, values...);
    if (wanted > 0) used_ += static_cast<size_t>(wanted);
    if (used_ > sizeof text_ - 1) used_ = sizeof text_ - 1;
  }
  const char* data() const { return text_; }
  size_t size() const { return used_; }

 private:
  char text_[2000] = {};
  size_t used_ = 0;
};

void add_frame(Text& text, void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) {
    text.add(" %p", address);
    return;
  }
  const char* name = std::strrchr(info.dli_fname, '/');
  text.add(" %s+0x%lx", name == nullptr ? info.dli_fname : name + 1,
           reinterpret_cast<unsigned long>(address) - reinterpret_cast<unsigned long>(info.dli_fbase));
}

// backtrace(), dladdr() and snprintf() are not promised to be safe in a handler. The process is lost either
// way: the alarm ends it should one of them hang.
void on_crash(int signal, siginfo_t* information, void*) {
  std::signal(SIGALRM, SIG_DFL);
  alarm(kPatienceSeconds);
  Text text;
  char thread[16] = {};
  prctl(PR_GET_NAME, thread);
  text.add("signal %d at %p while serving %s, in thread %.15s:", signal, information->si_addr,
           wire::function_name(static_cast<wire::Function>(g_serving.load(std::memory_order_relaxed))),
           thread);
  void* frames[kFrames];
  const int count = backtrace(frames, kFrames);
  for (int i = 1; i < count; ++i) add_frame(text, frames[i]);  // the first is this handler
  log_crash(text.data(), text.size());
  std::signal(signal, SIG_DFL);
  raise(signal);  // delivered when this handler returns
}

}  // namespace

void report_crashes() {
  void* frame = nullptr;
  backtrace(&frame, 1);         // loads what it needs now, before the sandbox and outside any handler
  static char stack[64 << 10];  // of the dispatcher's thread, whose own may have run over
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_sigaction = &on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigfillset(&action.sa_mask);
  sigdelset(&action.sa_mask, SIGALRM);
  for (const int signal : {SIGSEGV, SIGILL, SIGFPE, SIGABRT}) sigaction(signal, &action, nullptr);
}

}  // namespace gpupool::worker
