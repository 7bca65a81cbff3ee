// What the worker gives up before it reads the first byte of its client: its user, its files, most system
// calls. hostd orders the parts that this machine has (`gpupool-worker --probe-sandbox` tells), and a part
// that was ordered and cannot be had ends the session: what `gpupool status` says of a session is true.
//
// Order: the driver is loaded, become_user(), cuInit, enter_sandbox(), the first byte. cuInit may start
// nvidia-modprobe, a set-user-id program that makes device files: no new privileges must come after it.
// docs/security.md has the whole picture.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

enum class CallFilter { off, report, end };

struct SandboxOptions {
  CallFilter calls = CallFilter::off;  // report: refuse and log; end: the session, too
  bool files = false;                  // Landlock
  u32 user = 0;                        // 0: keep the user that hostd has
  u32 group = 0;
  std::vector<u32> groups;   // supplementary, for device files that only a group may open
  u32 threads = 0;           // most threads of this user; 0: not limited here
  std::string cache_folder;  // where the driver may keep compiled code; empty: nowhere
};

// Gives root up for good. Does nothing without a user in the options. False with `error`.
bool become_user(const SandboxOptions& options, std::string& error);

// No core dumps, no look from outside, no new privileges, then Landlock and the system call filter, for this
// thread and those it starts; the filter also for threads that exist. False with `error`.
bool enter_sandbox(const SandboxOptions& options, const std::string& library, std::string& error);

// Leaves only these descriptors and the standard ones open.
void close_other_descriptors(const std::vector<int>& kept);

// Enters what this kernel has and prints it as one JSON line, for hostd and `gpupool doctor`.
int probe_sandbox();

// The parts, in files of their own (sandbox_files.cpp, sandbox_calls.cpp).
int landlock_version();  // 0: none
bool restrict_files(const std::string& library, const std::string& cache_folder, std::string& error);
bool deny_files(std::string& error);  // none at all, of any folder; needs no new privileges given up
bool restrict_calls(bool end_on_refusal, std::string& error);

}  // namespace gpupool::worker
