// Timing of every call for a program that runs under GPUPOOL_PROFILE_DIR (`gpupool run --profile`). Decided
// once, when the session starts. Calls are counted per function and kept as events, in a file that is mapped
// into the process (profile_file.hpp): no lock, allocation or system call on the way, and bounded memory.
#pragma once

#include "guest/runtime/gate.hpp"
#include "wire/cpp/types.hpp"
#include "wire_functions.hpp"  // generated

namespace gpupool::guest {

class Session;

// Makes this process's file in the folder that the environment names, if it names one, and raises the gate.
// Called by Session::connect once the devices are known. What goes wrong is logged; the program runs on.
void open_profile(const Session& session);
// In a forked child: its parent's file is the parent's.
void leave_profile();

// A call of the driver's API while it is in progress, made by the second bodies of the entry points alone.
// Nothing when nobody wants a profile. Recorded if profiling is on when it ends, and so cuInit is.
class ProfiledCall {
 public:
  explicit ProfiledCall(wire::Function function);
  ~ProfiledCall();
  ProfiledCall(const ProfiledCall&) = delete;
  ProfiledCall& operator=(const ProfiledCall&) = delete;

 private:
  friend class ProfiledWait;
  friend void profile_bytes_now(u64 to_device, u64 from_device);

  wire::Function function_;
  ProfiledCall* outer_ = nullptr;  // a host function's, when it calls the driver against the rules
  u64 start_ns_ = 0;               // 0: not wanted
  u64 waited_ns_ = 0;
  u64 waits_ = 0;
  bool waiting_ = false;
  u64 to_device_bytes_ = 0, from_device_bytes_ = 0;
};

// While this exists, this thread's call waits for the worker or the GPU. Off the launch path only.
class ProfiledWait {
 public:
  ProfiledWait();
  ~ProfiledWait();
  ProfiledWait(const ProfiledWait&) = delete;
  ProfiledWait& operator=(const ProfiledWait&) = delete;

 private:
  ProfiledCall* call_ = nullptr;  // null: none, or it waits already
  u64 start_ns_ = 0;
};

void profile_bytes_now(u64 to_device, u64 from_device) __attribute__((cold));
// This thread's call moves so many bytes between the program and the worker or its device.
inline void profile_bytes(u64 to_device, u64 from_device) {
  if (profiling()) [[unlikely]]
    profile_bytes_now(to_device, from_device);
}

// The part of the file that a thread writes; ThreadState keeps it and gives it back when the thread ends.
struct ThreadProfile;
void return_profile(ThreadProfile* profile);

}  // namespace gpupool::guest
