// One connection that the relay carries: a socket on this side, a UCX endpoint towards the relay on the
// other.
//
// Bytes travel in active messages with a sequence number each, because UCX keeps no order between large and
// small ones. A side may have kCredit bytes on their way; more come back as credit when they have been
// written to the socket. So memory is bounded however slow a reader is, and who sends more than that is hung
// up on.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "ucx/ucx.hpp"

namespace gpupool::ucx {

inline constexpr std::uint64_t kChunk = 256u << 10;
inline constexpr std::uint64_t kCredit = 4u << 20;

// What a message of so many bytes takes of the credit: many small ones cost memory, too.
constexpr std::uint64_t cost(std::uint64_t bytes) {
  return bytes + 1024;
}

// Where the other relay is: at an address, or behind a connection request of its own.
struct FarSide {
  const sockaddr* address = nullptr;
  unsigned address_bytes = 0;
  ucp_conn_request_h request = nullptr;
  // UCX tells when the other side dies. Its shared memory cannot (UCX 1.13) and is not used then.
  bool notices_failure = true;
};

class Link {
 public:
  // Takes over `socket`. Throws UcxError.
  Link(const UcxContext& context, int socket, const FarSide& far);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Does what can be done without waiting; true when something was.
  bool step();
  // True when the loop may sleep until the socket or the worker's descriptor has news.
  bool arm() { return worker_.arm(); }
  [[nodiscard]] bool finished() const { return finished_; }
  [[nodiscard]] int socket() const { return socket_; }
  [[nodiscard]] int efd() const { return worker_.efd(); }
  // EPOLLIN | EPOLLOUT, as far as news of the socket would help now.
  [[nodiscard]] std::uint32_t interest() const;

 private:
  // `end` is the last of a side's data; `done` says that the other's end has come, and with it everything.
  // Only then may an endpoint be closed: UCX lets the news of that overtake what is in shared memory.
  enum class Kind : std::uint64_t { data = 1, credit = 2, end = 3, done = 4 };
  struct Header {
    std::uint64_t sequence = 0;  // of data and end
    Kind kind = Kind::data;
    std::uint64_t amount = 0;  // of credit
  };
  // Something to send; lives until UCX has sent it.
  struct Outgoing {
    Link* link = nullptr;
    Header header;
    std::unique_ptr<std::uint8_t[]> data;  // kChunk bytes; null for what carries none
    bool busy = false;
  };
  // Something received; lives until it is in the socket.
  struct Incoming {
    Link* link = nullptr;
    std::uint64_t size = 0;
    std::uint64_t written = 0;
    bool here = true;               // false: UCX is still bringing it
    void* held = nullptr;           // UCX's memory...
    std::vector<std::uint8_t> own;  // ... or ours
    bool end = false;
    [[nodiscard]] const std::uint8_t* bytes() const {
      return held != nullptr ? static_cast<const std::uint8_t*>(held) : own.data();
    }
  };

  static ucs_status_t on_message(void* self, const void* header, size_t header_bytes, void* data, size_t size,
                                 const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* outgoing);
  static void on_received(void* request, ucs_status_t status, size_t size, void* incoming);
  static void on_error(void* self, ucp_ep_h endpoint, ucs_status_t status);

  ucs_status_t receive(const Header& header, void* data, size_t size, std::uint64_t attributes);
  bool opened();
  bool read_socket();
  bool write_socket();
  void send(Outgoing& outgoing, size_t size);
  Outgoing* idle_control();
  void send_control(const Header& header);
  void send_end();
  void close_endpoint(bool force);
  void look_at_end();

  int socket_;
  ucp_ep_h endpoint_ = nullptr;
  std::array<Outgoing, 4> chunks_;
  std::deque<std::unique_ptr<Outgoing>> controls_;  // credit and end; as many as were ever busy at a time
  std::uint64_t sent_sequence_ = 0;
  std::uint64_t on_the_way_ = 0;  // cost of what the other side has not given credit for again

  std::map<std::uint64_t, std::unique_ptr<Incoming>> received_;  // by sequence: they may come out of order
  std::uint64_t next_sequence_ = 0;
  std::uint64_t unwritten_ = 0;  // cost of what is received and not written
  std::uint64_t owed_credit_ = 0;

  bool sent_end_ = false, got_end_ = false, got_done_ = false;
  bool socket_broken_ = false;  // nothing can be written any more
  bool failed_ = false;         // the other side is gone or breaks the rules
  bool finished_ = false;
  void* opening_ = nullptr;  // while the connection is being made; nothing is sent before
  void* closing_ = nullptr;
  std::uint64_t deadline_ns_ = 0;  // of the opening, and of an orderly end
  UcxWorker worker_;               // last: its end ends every callback
};

}  // namespace gpupool::ucx
