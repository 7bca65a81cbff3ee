// One client's commands, from its first byte to its last: read once, checked, and only then carried out.
// docs/opengl.md has the whole picture; vtest.hpp the protocol.
//
// Nothing of the client's is trusted. What no honest client sends throws wire::ProtocolError, which ends the
// session. The contents of a submitted buffer are virglrenderer's to check, inside this process's sandbox;
// here is only checked that its commands fill it, and that it makes no memory behind the account's back.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "hostd/renderer/backend.hpp"
#include "hostd/renderer/connection.hpp"
#include "hostd/renderer/resources.hpp"
#include "hostd/renderer/vtest.hpp"

namespace gpupool::renderer {

// When the GPU may be used (turn.hpp).
class Turn {
 public:
  virtual ~Turn() = default;
  // Returns when something may be submitted.
  virtual void take() = 0;
  // It has been.
  virtual void submitted() = 0;
};

// The memory or the number of resources that the vGPU has is used up, and the protocol has no way to say so.
class OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the session has done, for hostd's metrics.
struct Tally {
  u64 commands = 0;
  u64 answers = 0;
  u64 buffers = 0;  // submitted
  u64 to_device_bytes = 0;
  u64 from_device_bytes = 0;
};

class Session {
 public:
  Session(Stream& stream, Backend& backend, Resources& resources, Turn& turn)
      : stream_(stream), backend_(backend), resources_(resources), turn_(turn) {}

  // Serves one command. False when the client has gone.
  bool serve();
  // Nothing more has come so far: the GPU may begin with what there is.
  void flush();
  [[nodiscard]] const Tally& tally() const { return tally_; }

 private:
  bool carry_out(const Header& header);
  bool create_renderer(u32 bytes);
  bool send_caps(u32 set);
  bool answer_ping();
  bool answer_version(u32 wanted);
  bool create(const CreateWords& words, u32 shared_bytes, bool shares);
  void unref(u32 handle);
  bool get(const TransferWords& words);
  bool put(const TransferWords& words);
  void transfer_shared(const Transfer2Words& words, bool reads);
  bool submit(u32 words);
  bool busy_wait(const BusyWaitWords& words);
  Resource& used(u32 handle, u32 level, const Box& box);
  bool receive(std::vector<u8>& data, u64 bytes);
  bool pass();
  void submitted();
  // Fills a struct of exactly that many words.
  template <typename Words>
  bool take(const Header& header, Words& words);

  Stream& stream_;
  Backend& backend_;
  Resources& resources_;
  Turn& turn_;
  Tally tally_;
  bool has_context_ = false;
  u32 version_ = 0;
  u32 just_read_ = 0;  // the last command brought this resource's data, so it waits for nothing
  u32 sub_contexts_ = 0;
  bool asks_queries_ = false;
  bool unflushed_ = false;  // the GPU may not have begun with what was submitted
  bool unmarked_ = true;    // something was submitted behind the mark
  bool passed_ = false;     // the mark is
  std::vector<u8> data_;    // of transfers
  std::vector<u32> words_;  // of a submitted buffer
};

}  // namespace gpupool::renderer
