// A client's commands out of a slot of its virtual machine's window (wire/cpp/byte_rings.hpp). Over the
// connection there come and go nothing but bells.
#pragma once

#include "hostd/renderer/connection.hpp"
#include "wire/cpp/byte_rings.hpp"

namespace gpupool::renderer {

class WindowConnection final : public Connection {
 public:
  // `rings` is mapped for as long as this is. Counters that cannot be throw wire::ProtocolError.
  WindowConnection(int bells, const wire::ByteRings& rings, std::function<void()> when_empty,
                   std::function<int()> before_sleep);
  bool write(const void* data, size_t size) override;
  bool write_descriptor(int) override { return false; }
  bool ended() override;
  // The slot is another session's after the end: until then the client has taken what is in it.
  void finish() override { finish(kFinishNs); }
  void finish(u64 at_most_ns);

 private:
  static constexpr u64 kFinishNs = 5'000'000'000;

  ssize_t take(u8* data, size_t size) override;
  int sleep(int timeout_ms) override;
  void wait_for_client(const std::function<bool()>& stuck, int timeout_ms);
  void ring();
  void hear();

  int bells_;
  wire::RingReader in_;
  wire::RingWriter out_;
  bool gone_ = false;
};

}  // namespace gpupool::renderer
