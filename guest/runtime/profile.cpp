#include "guest/runtime/profile.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/profile_file.hpp"
#include "guest/runtime/session.hpp"
#include "guest/runtime/thread_state.hpp"
#include "guest/runtime/transport/endpoint.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::guest {

struct ThreadProfile {
  profile::ThreadHeader* header = nullptr;
  profile::Counter* counters = nullptr;
  profile::Event* events = nullptr;
  u64 event_capacity = 0;
  u32 thread = 0;
};

namespace {

constexpr u32 kMostFiles = 100;  // programs that one process has been, one after the other, by exec

constexpr u64 pages(u64 bytes) {
  return (bytes + profile::kPage - 1) / profile::kPage * profile::kPage;
}
constexpr u64 kNamesBytes = pages(wire::kFunctionCount * profile::kNameBytes);
constexpr u64 kThreadsOffset = profile::kPage + kNamesBytes;
constexpr u64 kCountersBytes = wire::kFunctionCount * sizeof(profile::Counter);
u64 thread_bytes(u64 events) {
  return pages(sizeof(profile::ThreadHeader) + kCountersBytes + events * sizeof(profile::Event));
}

const char* wanted_folder() {
  static const char* const folder = [] {
    const char* value = std::getenv("GPUPOOL_PROFILE_DIR");
    return value != nullptr && *value != '\0' ? value : nullptr;
  }();
  return folder;
}

// The file of this process. Never destroyed: programs call the driver from their own exit handlers.
class ProfileFile {
 public:
  // Null with a line for the user when it cannot be made.
  static ProfileFile* create(const char* folder, const Session& session) {
    auto* file = new ProfileFile();
    std::string path;
    std::string why;
    u32 events = profile::kEvents;
    if (!read_number("GPUPOOL_PROFILE_EVENTS", profile::kMostEvents, events, why))
      log_line("%s", why.c_str());
    for (u32 turn = 0; turn < kMostFiles && file->fd_ < 0; ++turn) {
      path = std::string(folder) + "/" + std::to_string(getpid()) + "-" + std::to_string(turn) + ".profile";
      file->fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
      if (file->fd_ < 0 && errno != EEXIST) break;
    }
    if (file->fd_ >= 0 && file->write_header(session, events)) return file;
    log_line("cannot write the profile %s: %s", path.c_str(), std::strerror(errno));
    if (file->fd_ >= 0) close(file->fd_);
    delete file;
    return nullptr;
  }

  profile::Header& header() { return *header_; }

  // Room for a thread that has none: what one that ended has left, or more of the file. Null when there is
  // none; its calls are then counted as left out. Once in a thread's life: a lock costs nothing there.
  ThreadProfile* take() {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      ThreadProfile* const found = free_.back();
      free_.pop_back();
      return found;
    }
    if (full_) return nullptr;
    ThreadProfile* const made = add();
    full_ = made == nullptr;
    return made;
  }

  void give_back(ThreadProfile* thread) {
    const std::lock_guard lock(mutex_);
    free_.push_back(thread);
  }

 private:
  bool write_header(const Session& session, u32 events) {
    void* const memory = map(0, kThreadsOffset);
    if (memory == nullptr) return false;
    header_ = static_cast<profile::Header*>(memory);
    for (u32 i = 0; i < wire::kFunctionCount; ++i)
      std::snprintf(static_cast<char*>(memory) + profile::kPage + i * profile::kNameBytes,
                    profile::kNameBytes, "%s", wire::function_name(static_cast<wire::Function>(i)));
    header_->pid = static_cast<u32>(getpid());
    header_->function_count = wire::kFunctionCount;
    header_->names_offset = profile::kPage;
    header_->threads_offset = kThreadsOffset;
    header_->thread_bytes = thread_bytes(events);
    header_->event_capacity = events;
    header_->opened_ns = wire::monotonic_ns();
    std::snprintf(header_->transport, sizeof header_->transport, "%s", session.transport_name());
    std::memcpy(header_->device, session.devices().front().name, sizeof header_->device - 1);
    read_program_name(header_->program);
    header_->magic.store(profile::kMagic, std::memory_order_release);
    return true;
  }

  // Space is reserved before it is mapped: a full disk is an error here and not a SIGBUS in the program.
  void* map(u64 offset, u64 bytes) {
    if (const int error = posix_fallocate(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes));
        error != 0) {
      errno = error;
      return nullptr;
    }
    // Pages are made present now, so that calls which are timed do not pay for them.
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_,
                              static_cast<off_t>(offset));
    return memory == MAP_FAILED ? nullptr : memory;
  }

  ThreadProfile* add() {
    const u32 number = header_->threads.load(std::memory_order_relaxed);
    if (number >= profile::kMostThreads) return nullptr;
    const u64 bytes = header_->thread_bytes;
    auto* const memory = static_cast<u8*>(map(kThreadsOffset + number * bytes, bytes));
    if (memory == nullptr) {
      log_line("no room for the profile of another thread: %s", std::strerror(errno));
      return nullptr;
    }
    auto* const made = new ThreadProfile();
    made->event_capacity = header_->event_capacity;
    made->header = reinterpret_cast<profile::ThreadHeader*>(memory);
    made->counters = reinterpret_cast<profile::Counter*>(memory + sizeof(profile::ThreadHeader));
    made->events = reinterpret_cast<profile::Event*>(memory + sizeof(profile::ThreadHeader) + kCountersBytes);
    header_->threads.store(number + 1, std::memory_order_release);
    return made;
  }

  int fd_ = -1;
  profile::Header* header_ = nullptr;
  std::mutex mutex_;
  std::vector<ThreadProfile*> free_;
  bool full_ = false;
};

std::atomic<ProfileFile*> g_file{nullptr};

void mark_ended() {
  ProfileFile* const file = g_file.load(std::memory_order_acquire);
  if (file != nullptr) file->header().ended.store(1, std::memory_order_relaxed);
}

// Single writer: a plain addition, which a reader in another process sees whole.
void add(std::atomic<u64>& counter, u64 amount) {
  counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

ThreadProfile* profile_of(ThreadState& state, ProfileFile& file) {
  if (state.profile == nullptr) {
    state.profile = file.take();
    if (state.profile == nullptr) return nullptr;
    state.profile->thread = static_cast<u32>(syscall(SYS_gettid));
  }
  return state.profile;
}

void record(ThreadProfile& thread, const profile::Event& event, bool waited) {
  profile::Counter& counter = thread.counters[event.function];
  add(counter.calls, 1);
  add(counter.total_ns, event.duration_ns);
  if (event.duration_ns > counter.longest_ns.load(std::memory_order_relaxed))
    counter.longest_ns.store(event.duration_ns, std::memory_order_relaxed);
  if (waited) {
    add(counter.waited_calls, 1);
    add(counter.waited_ns, event.waited_ns);
  }
  if (event.to_device_bytes != 0) add(counter.to_device_bytes, event.to_device_bytes);
  if (event.from_device_bytes != 0) add(counter.from_device_bytes, event.from_device_bytes);
  const u64 number = thread.header->events.load(std::memory_order_relaxed);
  thread.events[number % thread.event_capacity] = event;
  thread.header->events.store(number + 1, std::memory_order_release);
}

}  // namespace

void open_profile(const Session& session) {
  const char* const folder = wanted_folder();
  if (folder == nullptr || session.devices().empty()) return;
  ProfileFile* const file = ProfileFile::create(folder, session);
  if (file == nullptr) return;
  g_file.store(file, std::memory_order_release);
  std::atexit(&mark_ended);
  g_gate.bits.fetch_or(kGateProfiled, std::memory_order_release);
}

void leave_profile() {
  g_file.store(nullptr, std::memory_order_release);
}

ProfiledCall::ProfiledCall(wire::Function function) : function_(function) {
  if (wanted_folder() == nullptr) return;
  ThreadState& state = thread_state();
  outer_ = state.profiled_call;
  state.profiled_call = this;
  start_ns_ = wire::monotonic_ns();
}

ProfiledCall::~ProfiledCall() {
  if (start_ns_ == 0) return;
  const u64 now = wire::monotonic_ns();
  ThreadState& state = thread_state();
  state.profiled_call = outer_;
  ProfileFile* const file = g_file.load(std::memory_order_acquire);
  const Session* const session = Session::current();
  if (file == nullptr || session == nullptr) return;
  ThreadProfile* const thread = profile_of(state, *file);
  if (thread == nullptr) {
    file->header().calls_left_out.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  record(*thread,
         {start_ns_, now - start_ns_, waited_ns_, to_device_bytes_, from_device_bytes_,
          static_cast<u32>(function_), thread->thread},
         waits_ != 0);
  thread->header->messages.store(session->tickets(), std::memory_order_relaxed);
}

ProfiledWait::ProfiledWait() {
  if (wanted_folder() == nullptr) return;
  ProfiledCall* const call = thread_state().profiled_call;
  if (call == nullptr || call->waiting_) return;
  call_ = call;
  call_->waiting_ = true;
  start_ns_ = wire::monotonic_ns();
}

ProfiledWait::~ProfiledWait() {
  if (call_ == nullptr) return;
  call_->waited_ns_ += wire::monotonic_ns() - start_ns_;
  ++call_->waits_;
  call_->waiting_ = false;
}

void profile_bytes_now(u64 to_device, u64 from_device) {
  ProfiledCall* const call = thread_state().profiled_call;
  if (call == nullptr) return;  // a thread of ours
  call->to_device_bytes_ += to_device;
  call->from_device_bytes_ += from_device;
}

void return_profile(ThreadProfile* profile) {
  ProfileFile* const file = g_file.load(std::memory_order_acquire);
  if (profile == nullptr || file == nullptr) return;
  profile->thread = 0;
  file->give_back(profile);
}

}  // namespace gpupool::guest
