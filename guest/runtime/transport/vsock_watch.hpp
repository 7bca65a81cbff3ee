// Notices that the host's end of a virtual machine's vsock has gone. A relay or hypervisor process that dies
// resets no connection, and neither vsock nor the guest's kernel asks: whoever waits would wait for ever.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

class VsockWatch {
 public:
  // `received` grows with what arrives on the session's connections; `lost` is called once, from the watch's
  // thread. Nothing happens where `socket` is no vsock.
  VsockWatch(int socket, const std::atomic<u64>& received, std::function<void()> lost);
  ~VsockWatch() { stop(); }
  void start();
  void stop();
  // In a forked child, where the thread does not exist.
  void abandon();

 private:
  void watch();
  // False when the host did not answer in time.
  bool host_answers() const;

  u32 host_ = 0;  // its CID; 0: this is no vsock
  const std::atomic<u64>& received_;
  std::function<void()> lost_;
  std::atomic<u32> stopping_{0};  // a futex
  std::thread thread_;
};

}  // namespace gpupool::guest
