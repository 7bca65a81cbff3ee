// The stream of a client's commands and of the answers.
#pragma once

#include <sys/types.h>

#include <functional>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::renderer {

// What the parser reads from; a socket, or a fuzzer's bytes.
class Stream {
 public:
  virtual ~Stream() = default;
  // Fills `data`. False when the client has gone.
  virtual bool read(void* data, size_t size) = 0;
  virtual bool write(const void* data, size_t size) = 0;
  // One byte with a descriptor beside it, or without one where `fd` is negative.
  virtual bool write_descriptor(int fd) = 0;
  // Whether a descriptor can be passed at all.
  [[nodiscard]] virtual bool passes_descriptors() const = 0;
  // Whether the client has gone meanwhile, for whoever waits for something else.
  virtual bool ended() = 0;
};

// A socket, read ahead: clients write headers and payloads apart.
class Connection : public Stream {
 public:
  // `before_sleep` is called whenever there is nothing to read: what a lease is held for is done, perhaps.
  // It says for how many milliseconds to sleep before it is called again; -1: until something comes.
  // `when_empty` is called before that, when for the first time nothing is there.
  Connection(int fd, bool is_unix, std::function<void()> when_empty, std::function<int()> before_sleep);
  bool read(void* data, size_t size) override;
  bool write(const void* data, size_t size) override;
  bool write_descriptor(int fd) override;
  [[nodiscard]] bool passes_descriptors() const override { return is_unix_; }
  bool ended() override;
  // Called before the end: what was written is the client's by then, or some seconds have passed. A socket
  // keeps it itself.
  virtual void finish() {}

 protected:
  // What is there, without sleeping, as recv() answers: 0 at the end, -1 with EAGAIN.
  virtual ssize_t take(u8* data, size_t size);
  // As poll() does for this alone: positive when something is there.
  virtual int sleep(int timeout_ms);
  [[nodiscard]] bool has_ahead() const { return next_ != end_; }

 private:
  bool wait_for_bytes();
  bool spin_on();
  bool receive(u8* data, size_t size, size_t& got);

  int fd_;
  bool is_unix_;
  std::function<void()> when_empty_;
  std::function<int()> before_sleep_;
  std::vector<u8> ahead_;
  size_t next_ = 0;
  size_t end_ = 0;
  u64 spun_since_ns_ = 0;
};

}  // namespace gpupool::renderer
