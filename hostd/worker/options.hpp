// The worker's command line, which only hostd writes (hostd/adapters/worker_process.py is the other end).
#pragma once

#include <string>
#include <vector>

#include "hostd/worker/caps.hpp"
#include "hostd/worker/log.hpp"
#include "hostd/worker/sandbox.hpp"
#include "wire/cpp/hello.hpp"
#include "wire/cpp/zero_copy.hpp"

namespace gpupool::worker {

struct Options {
  // The client has the same memory mapped.
  bool shares_memory() const {
    return transport == wire::TransportKind::shm || transport == wire::TransportKind::window;
  }
  int socket_fd = -1;
  std::vector<int> lane_fds;  // further connections of the session
  u32 asked_lanes = 0;        // so many did the client ask for; not 0: the Welcome says what it got
  int window_fd = -1;         // of shm, and of window: there the file is the machine's
  int usage_fd = -1;          // the page for usage_page.hpp; none in tests of the worker alone
  int client_pidfd = -1;      // where hostd could get one
  int exchange_fd = -1;       // to hostd, for what sessions of one tenant share (exchange.hpp)
  // Of the vGPUs, one for each of `devices` in their order; all empty: nothing is enforced.
  std::vector<int> quota_fds;    // hostd/pages/quota_page.hpp, to read only
  std::vector<int> account_fds;  // hostd/pages/account_page.hpp
  std::vector<int> lease_fds;    // hostd/pages/lease_page.hpp
  std::vector<u32> vgpu_rows;    // of the quota page
  std::vector<u32> account_rows;
  wire::TransportKind transport = wire::TransportKind::shm;
  u64 window_base = 0;
  u64 window_bytes = 0;
  u64 window_offset = 0;             // in that file; 0 but for window
  std::string library;               // absolute path of the libcuda to use
  std::vector<std::string> devices;  // UUIDs, as NVML writes them; empty: every device
  u64 session_id = 0;
  u32 compute_percent = 0;
  u32 memory_mib = 0;
  LogStyle log;
  SandboxOptions sandbox;
  Caps caps;
  std::string host_version;
  u32 launch_threads = 0;  // 0: by the number of cores; 1: the dispatcher alone (launch_crew.hpp)
  wire::ZeroCopyMode zero_copy = wire::ZeroCopyMode::automatic;
  bool opengl = false;  // the client may have the host's OpenGL (hostd/worker/opengl)
  int order_fd = -1;    // a worker started ahead of need: where its client will come from (order.hpp)
  bool prepare_context = false;  // it makes the first device's context, too
};

// False with `error` saying which option is wrong. Options that were there stay, unless they are named again.
bool parse_options(int argc, char** argv, Options& options, std::string& error);
// As on the command line.
const char* transport_word(wire::TransportKind kind);
// Whether they are enough to serve a client.
bool check_options(const Options& options, std::string& error);

}  // namespace gpupool::worker
