// seccomp: which system calls the worker may make from now on
// (Documentation/userspace-api/seccomp_filter.rst).
//
// An allow-list. What is on it: memory, threads, files that are open or that Landlock lets be opened,
// waiting, clocks, the sockets it has. Not on it, so refused: starting programs and processes, new network
// connections, looking into other processes, mounts, namespaces, keys, BPF, io_uring, modules, everything of
// later kernels. A refused call is never made. It raises SIGSYS, and the handler writes its number into the
// log.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <vector>

#include "hostd/worker/log.hpp"
#include "hostd/worker/sandbox.hpp"

namespace gpupool::worker {
namespace {

constexpr u32 kX32 = 0x4000'0000;       // __X32_SYSCALL_BIT of asm/unistd.h: the same calls by other numbers
constexpr u32 kFastOpen = 0x2000'0000;  // MSG_FASTOPEN: a connect() inside a send
constexpr u32 kTerminalInput = 0x5412;  // TIOCSTI: types into the terminal that hostd runs in
constexpr u32 kTerminalConsole = 0x541C;     // TIOCLINUX: pastes into it
constexpr u32 kNameMapping = 0x5356'4d41;    // PR_SET_VMA
constexpr u32 kNewNamespaces = 0x7e02'0000;  // every CLONE_NEW* of clone(2)
constexpr u32 kWaitableFutex = 449;          // futex_waitv
constexpr u32 kSealMapping = 462;            // mseal

// Those a busy session makes come first: kernels before 5.11 walk the list for each call.
constexpr u32 kAllowed[] = {
    SYS_futex, SYS_poll, SYS_clock_nanosleep, SYS_read, SYS_write, SYS_recvfrom, SYS_recvmsg, SYS_sched_yield,
    SYS_clock_gettime, SYS_gettimeofday, SYS_nanosleep,
    // memory
    SYS_mmap, SYS_munmap, SYS_mprotect, SYS_madvise, SYS_mremap, SYS_brk, SYS_mlock, SYS_mlock2, SYS_munlock,
    SYS_mlockall, SYS_munlockall, SYS_mincore, SYS_msync, SYS_membarrier, SYS_get_mempolicy,
    SYS_set_mempolicy, SYS_mbind, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_memfd_create,
    kSealMapping,
    // files
    SYS_open, SYS_openat, SYS_close, SYS_close_range, SYS_pread64, SYS_pwrite64, SYS_readv, SYS_writev,
    SYS_preadv, SYS_pwritev, SYS_lseek, SYS_fstat, SYS_stat, SYS_lstat, SYS_newfstatat, SYS_statx, SYS_statfs,
    SYS_fstatfs, SYS_access, SYS_faccessat, SYS_faccessat2, SYS_readlink, SYS_readlinkat, SYS_getdents,
    SYS_getdents64, SYS_getcwd, SYS_fcntl, SYS_flock, SYS_dup, SYS_dup2, SYS_dup3, SYS_pipe, SYS_pipe2,
    SYS_ftruncate, SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_fadvise64, SYS_readahead, SYS_copy_file_range,
    SYS_sendfile, SYS_fchmod, SYS_umask, SYS_mkdir, SYS_mkdirat, SYS_rmdir, SYS_unlink, SYS_unlinkat,
    SYS_rename, SYS_renameat, SYS_renameat2,
    // waiting and clocks
    SYS_ppoll, SYS_select, SYS_pselect6, SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_wait,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd, SYS_eventfd2, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_timerfd_gettime, SYS_signalfd4, SYS_clock_getres, SYS_time, SYS_timer_create, SYS_timer_settime,
    SYS_timer_gettime, SYS_timer_getoverrun, SYS_timer_delete, SYS_getitimer, SYS_setitimer, SYS_alarm,
    SYS_pause, SYS_restart_syscall, kWaitableFutex, 454, 455, 456,  // futex_wake, futex_wait, futex_requeue
    // threads and signals of this process
    SYS_exit, SYS_exit_group, SYS_set_robust_list, SYS_get_robust_list, SYS_set_tid_address, SYS_rseq,
    SYS_gettid, SYS_arch_prctl, SYS_getcpu, SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_sched_getparam,
    SYS_sched_setparam, SYS_sched_getscheduler, SYS_sched_setscheduler, SYS_sched_get_priority_max,
    SYS_sched_get_priority_min, SYS_sched_rr_get_interval, SYS_sched_getattr, SYS_getpriority,
    SYS_setpriority, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending,
    SYS_rt_sigtimedwait, SYS_rt_sigsuspend, SYS_sigaltstack, SYS_wait4,
    // who and where
    SYS_getpid, SYS_getppid, SYS_getpgid, SYS_getpgrp, SYS_getsid, SYS_getuid, SYS_geteuid, SYS_getgid,
    SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups, SYS_capget, SYS_uname, SYS_sysinfo,
    SYS_getrlimit, SYS_setrlimit, SYS_getrusage, SYS_times, SYS_getrandom,
    // the sockets it has: nothing here makes or connects one. The driver listens on one since cuInit
    // (@cuda-uvmfd-..., for debuggers), where anybody may connect.
    SYS_accept, SYS_accept4, SYS_shutdown, SYS_getsockopt, SYS_setsockopt, SYS_getsockname, SYS_getpeername};

// Libraries ask for these and have another way when they are missing.
struct Answered {
  u32 call;
  u32 error;
};
constexpr Answered kAnswered[] = {
    {SYS_clone3, ENOSYS},  // its flags are behind a pointer; C libraries then use clone
    {SYS_mknod, EPERM},    // the driver asks for device files that are there already
    {SYS_mknodat, EPERM}, {SYS_chmod, EPERM},     {SYS_fchmodat, EPERM}, {SYS_chown, EPERM},
    {SYS_fchown, EPERM},  {SYS_link, EPERM},      {SYS_symlink, EPERM},  {SYS_utime, EPERM},
    {SYS_utimes, EPERM},  {SYS_utimensat, EPERM},
};

constexpr u32 argument(unsigned index, bool high = false) {
  return static_cast<u32>(offsetof(seccomp_data, args)) + index * 8 + (high ? 4 : 0);
}

class Program {
 public:
  void add(u32 code, u32 value, unsigned yes = 0, unsigned no = 0) {
    code_.push_back(sock_filter{static_cast<u16>(code), static_cast<u8>(yes), static_cast<u8>(no), value});
  }
  void load(u32 offset) { add(BPF_LD | BPF_W | BPF_ABS, offset); }
  void answer(u32 action) { add(BPF_RET | BPF_K, action); }
  void allow() { answer(SECCOMP_RET_ALLOW); }
  void refuse() { answer(SECCOMP_RET_TRAP); }

  void allow_call(u32 call) {
    add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
    allow();
  }
  void answer_call(u32 call, u32 error) {
    add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
    answer(SECCOMP_RET_ERRNO | error);
  }
  // `call` is allowed if (argument & mask) is one of `values`, else it gets `other`. Only for arguments of
  // which the kernel looks at no more than 32 bits.
  void allow_if(u32 call, unsigned index, u32 mask, const std::vector<u32>& values,
                u32 other = SECCOMP_RET_TRAP) {
    add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, static_cast<unsigned>(3 + 2 * values.size()));
    load(argument(index));
    add(BPF_ALU | BPF_AND | BPF_K, mask);
    for (const u32 value : values) {
      add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
      allow();
    }
    answer(other);
  }
  // `call` is allowed unless (argument & mask) is one of `values`.
  void refuse_if(u32 call, unsigned index, u32 mask, const std::vector<u32>& values) {
    add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, static_cast<unsigned>(3 + 2 * values.size()));
    load(argument(index));
    add(BPF_ALU | BPF_AND | BPF_K, mask);
    for (const u32 value : values) {
      add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
      refuse();
    }
    allow();
  }

  bool install(std::string& error) {
    const sock_fprog program{static_cast<unsigned short>(code_.size()), code_.data()};
    // TSYNC: for the threads that the driver has already, too. SPEC_ALLOW: kernels before 5.16 would
    // otherwise switch speculation off for good, which costs every instruction of the data path; the client's
    // code runs on the GPU, never in this process.
    const unsigned flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0) return true;
    error = std::string("seccomp: ") + std::strerror(errno);
    return false;
  }

 private:
  std::vector<sock_filter> code_;
};

void add_conditions(Program& program) {
  const auto self = static_cast<u32>(getpid());
  program.refuse_if(SYS_ioctl, 1, ~0u, {kTerminalInput, kTerminalConsole});
  program.refuse_if(SYS_sendmsg, 2, kFastOpen, {kFastOpen});
  program.refuse_if(SYS_sendmmsg, 3, kFastOpen, {kFastOpen});
  program.refuse_if(SYS_sendto, 3, kFastOpen, {kFastOpen});
  // Threads, not processes, and no namespaces.
  program.allow_if(SYS_clone, 0, CLONE_THREAD | CLONE_VM | kNewNamespaces, {CLONE_THREAD | CLONE_VM});
  // Signals, limits and memory policy: only this process's own.
  program.allow_if(SYS_tgkill, 0, ~0u, {self});
  program.allow_if(SYS_kill, 0, ~0u, {self});
  program.allow_if(SYS_rt_sigqueueinfo, 0, ~0u, {self});
  program.allow_if(SYS_rt_tgsigqueueinfo, 0, ~0u, {self});
  program.allow_if(SYS_prlimit64, 0, ~0u, {0, self});
  program.allow_if(SYS_move_pages, 0, ~0u, {0, self});
  program.allow_if(SYS_prctl, 0, ~0u,
                   {PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP,
                    PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_CAPBSET_READ, PR_GET_THP_DISABLE, kNameMapping},
                   SECCOMP_RET_ERRNO | EPERM);  // libraries try options, and live without them
  // A connected pair to talk to oneself. Datagram sockets could send to any address without connecting.
  program.allow_if(SYS_socketpair, 1, 0xf, {SOCK_STREAM, SOCK_SEQPACKET});
}

Program make_program() {
  Program program;
  program.load(offsetof(seccomp_data, arch));
  program.add(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
  program.answer(SECCOMP_RET_KILL_PROCESS);  // int 0x80: the calls have other numbers there
  program.load(offsetof(seccomp_data, nr));
  program.add(BPF_JMP | BPF_JGE | BPF_K, kX32, 0, 1);
  program.refuse();
  for (const u32 call : kAllowed) program.allow_call(call);
  add_conditions(program);
  for (const auto& [call, error] : kAnswered) program.answer_call(call, error);
  program.refuse();
  return program;
}

bool g_end_on_refusal = true;

void on_refusal(int, siginfo_t* information, void* context) {
  log_refused_call(information->si_syscall);
  if (g_end_on_refusal) _exit(kExitSandbox);
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RAX] = -EPERM;
}

}  // namespace

bool restrict_calls(bool end_on_refusal, std::string& error) {
  g_end_on_refusal = end_on_refusal;
  struct sigaction action {};
  action.sa_sigaction = &on_refusal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigfillset(&action.sa_mask);
  sigdelset(&action.sa_mask, SIGSYS);
  if (sigaction(SIGSYS, &action, nullptr) != 0) {
    error = std::string("sigaction: ") + std::strerror(errno);
    return false;
  }
  return make_program().install(error);
}

}  // namespace gpupool::worker
