// Speaks to a relay's UCX side as no relay does: hostile ADDRESS PORT WHAT. Ends with 0 once the relay has
// hung up, with 1 when it has not within ten seconds.
#include <arpa/inet.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "ucx/ucx.hpp"

using namespace gpupool::ucx;

namespace {

struct Header {  // Link::Header
  std::uint64_t sequence, kind, amount;
};

bool g_hung_up = false;

struct Peer {
  UcxContext context;
  UcxWorker worker{context};
  ucp_ep_h endpoint = nullptr;

  void connect(const char* host, const char* port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(std::atoi(port)));
    inet_pton(AF_INET, host, &address.sin_addr);
    // Answers of the relay, such as credit, mean nothing to us.
    ucp_am_handler_param_t handler{};
    handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB;
    handler.id = 1;
    handler.cb = [](void*, const void*, size_t, void*, size_t, const ucp_am_recv_param_t*) { return UCS_OK; };
    check(ucp_worker_set_am_recv_handler(worker.get(), &handler), "ucp_worker_set_am_recv_handler");
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                        UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
    params.sockaddr = {reinterpret_cast<const sockaddr*>(&address), sizeof address};
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void*, ucp_ep_h, ucs_status_t) { g_hung_up = true; };
    check(ucp_ep_create(worker.get(), &params, &endpoint), "ucp_ep_create");
  }

  void send(const void* header, size_t header_bytes, const std::vector<char>& data, unsigned id = 1) {
    const ucp_request_param_t params{};
    void* const request =
        ucp_am_send_nbx(endpoint, id, header, header_bytes, data.data(), data.size(), &params);
    const std::time_t end = std::time(nullptr) + 10;
    while (request != nullptr && !UCS_PTR_IS_ERR(request) && std::time(nullptr) < end &&
           ucp_request_check_status(request) == UCS_INPROGRESS && !g_hung_up)
      worker.progress();
  }

  void send(const Header& header, size_t size) { send(&header, sizeof header, std::vector<char>(size, 'x')); }

  bool is_hung_up() {
    for (int i = 0; i < 10'000 && !g_hung_up; ++i) {
      while (worker.progress()) {
      }
      usleep(1000);
    }
    return g_hung_up;
  }
};

}  // namespace

int main(int count, char** words) {
  if (count != 4) return 2;
  const std::string what = words[3];
  Peer peer;
  peer.connect(words[1], words[2]);
  peer.send(Header{0, 1, 0}, 5);  // as it should be
  if (what == "header") peer.send(words[1], 3, {});
  if (what == "kind") peer.send(Header{1, 9, 0}, 0);
  if (what == "far") peer.send(Header{1ull << 40, 1, 0}, 5);
  if (what == "again") peer.send(Header{0, 1, 0}, 5);
  if (what == "large") peer.send(Header{1, 1, 0}, 1 << 20);
  if (what == "empty") peer.send(Header{1, 1, 0}, 0);
  if (what == "credit") peer.send(Header{0, 2, 1}, 0);
  if (what == "done") peer.send(Header{0, 4, 0}, 0);
  if (what == "flood")
    for (std::uint64_t i = 1; i < 200 && !g_hung_up; ++i) peer.send(Header{i, 1, 0}, 256 << 10);
  if (what == "small")
    for (std::uint64_t i = 1; i < 20'000 && !g_hung_up; ++i) peer.send(Header{i, 1, 0}, 1);
  if (what == "gap")  // the first is missing, and so nothing of the rest can be written
    for (std::uint64_t i = 2; i < 20'000 && !g_hung_up; ++i) peer.send(Header{i, 1, 0}, 1);
  _exit(peer.is_hung_up() ? 0 : 1);
}
