// Descriptors that the client has sent (wire/cpp/parcel.hpp), until the handler that needs one takes it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <unordered_map>

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// Owns a descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

class Parcels {
 public:
  // Reads one parcel from the control socket, which has something to read. False when what came is no parcel,
  // or one too many: the client broke the protocol. Called by the watching thread only.
  bool receive(int socket);
  // The descriptor of that id; waits for it, since socket and ring are not ordered among each other. An empty
  // one when it does not come: no honest client names a parcel that it has not sent.
  Descriptor take(u64 id);
  // How long take() waits. A fuzzer names many that never come.
  std::chrono::milliseconds patience{2000};

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::unordered_map<u64, Descriptor> waiting_;
};

}  // namespace gpupool::worker
