// Single-stepping is the x86 trap flag (Intel SDM volume 3, 18.3.1.4); the fault's error code says whether it
// was a write (volume 3, 4.7).
#include "tests/cpp/fetch_watch.hpp"

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>

namespace gpupool::test {
namespace {

constexpr greg_t kTrapFlag = 0x100;
constexpr greg_t kWriteFault = 2;

struct State {
  u8* begin = nullptr;
  u64 bytes = 0;
  u64 reads = 0;
  // The copy that a library function (memcpy) is in the middle of: it may read some bytes twice, at its ends,
  // and is still one fetch. Over when anybody else reads. A call is told by the address it returns to.
  u8* low = nullptr;
  u8* high = nullptr;
  u64 caller = 0;
  u8* single = nullptr;  // what the instruction being stepped reads, outside a library
  // Inverted so far. No allocation in a signal handler.
  struct Range {
    u8* from;
    u8* to;
  };
  std::array<Range, 1 << 16> inverted{};
  u64 count = 0;
  struct sigaction before_fault {
  }, before_trap{};
} g_state;

bool in_library(u64 place) {
  static const u64 own = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&in_library), &info);
    return reinterpret_cast<u64>(info.dli_fbase);
  }();
  Dl_info info{};
  return dladdr(reinterpret_cast<const void*>(place), &info) != 0 &&
         reinterpret_cast<u64>(info.dli_fbase) != own;
}

void invert(u8* from, u8* to) {
  if (g_state.count == g_state.inverted.size()) std::abort();
  g_state.inverted[g_state.count++] = {from, to};
  for (u8* byte = from; byte < to; ++byte) *byte = static_cast<u8>(~*byte);
}

// As it was, for the next message. The worker does not write what it has read.
void restore() {
  while (g_state.count != 0) {
    const State::Range& range = g_state.inverted[--g_state.count];
    for (u8* byte = range.from; byte < range.to; ++byte) *byte = static_cast<u8>(~*byte);
  }
}

// With the pages accessible.
void end_copy() {
  if (g_state.low != nullptr) invert(g_state.low, g_state.high);
  g_state.low = g_state.high = nullptr;
}

void protect(int protection) {
  if (mprotect(g_state.begin, g_state.bytes, protection) != 0) std::abort();
}

void on_fault(int number, siginfo_t* info, void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  auto* address = static_cast<u8*>(info->si_addr);
  if (address < g_state.begin || address >= g_state.begin + g_state.bytes) {
    sigaction(number, &g_state.before_fault, nullptr);  // a real one: let it happen again
    return;
  }
  protect(PROT_READ | PROT_WRITE);
  greg_t* registers = context->uc_mcontext.gregs;
  const bool writes = (registers[REG_ERR] & kWriteFault) != 0;
  const auto place = static_cast<u64>(registers[REG_RIP]);
  const u64 caller = in_library(place) ? *reinterpret_cast<const u64*>(registers[REG_RSP]) : 0;
  if (g_state.low != nullptr && caller != g_state.caller) end_copy();
  if (!writes) {
    ++g_state.reads;
    if (caller != 0) {
      // Never beyond the address itself: how wide the instruction reads is not known.
      g_state.low = g_state.low == nullptr ? address : std::min(g_state.low, address);
      g_state.high = std::max(g_state.high, address + 1);
      g_state.caller = caller;
    } else {
      g_state.single = address;
    }
  }
  registers[REG_EFL] |= kTrapFlag;
}

void on_trap(int, siginfo_t*, void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  if (g_state.single != nullptr) invert(g_state.single, g_state.single + 1);
  g_state.single = nullptr;
  context->uc_mcontext.gregs[REG_EFL] &= ~kTrapFlag;
  protect(PROT_NONE);
}

}  // namespace

FetchWatch::FetchWatch(u8* begin, u64 bytes) {
  in_library(0);  // its first call allocates
  g_state.reads = g_state.count = 0;
  g_state.low = g_state.high = g_state.single = nullptr;
  g_state.begin = begin;
  g_state.bytes = bytes;
  struct sigaction action {};
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = on_fault;
  sigaction(SIGSEGV, &action, &g_state.before_fault);
  action.sa_sigaction = on_trap;
  sigaction(SIGTRAP, &action, &g_state.before_trap);
  protect(PROT_NONE);
}

FetchWatch::~FetchWatch() {
  protect(PROT_READ | PROT_WRITE);
  restore();
  sigaction(SIGSEGV, &g_state.before_fault, nullptr);
  sigaction(SIGTRAP, &g_state.before_trap, nullptr);
}

u64 FetchWatch::reads() const {
  return g_state.reads;
}

}  // namespace gpupool::test
