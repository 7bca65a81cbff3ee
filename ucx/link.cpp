#include "ucx/link.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "wire/cpp/futex.hpp"

namespace gpupool::ucx {
namespace {

constexpr unsigned kMessage = 1;
constexpr std::uint64_t kOpenNs = 20'000'000'000;
constexpr std::uint64_t kEndNs = 5'000'000'000;  // for both sides to say that they are done

}  // namespace

Link::Link(const UcxContext& context, int socket, const FarSide& far) : socket_(socket), worker_(context) {
  for (Outgoing& chunk : chunks_) {
    chunk.link = this;
    chunk.data = std::make_unique<std::uint8_t[]>(kChunk);
  }
  ucp_am_handler_param_t handler{};
  handler.field_mask =
      UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessage;
  handler.cb = &on_message;
  handler.arg = this;
  check(ucp_worker_set_am_recv_handler(worker_.get(), &handler), "ucp_worker_set_am_recv_handler");
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = far.notices_failure ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  params.err_handler.cb = &on_error;
  params.err_handler.arg = this;
  if (far.request != nullptr) {
    params.field_mask |= UCP_EP_PARAM_FIELD_CONN_REQUEST;
    params.conn_request = far.request;
  } else {
    params.field_mask |= UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
    params.sockaddr = {far.address, far.address_bytes};
  }
  check(ucp_ep_create(worker_.get(), &params, &endpoint_), "ucp_ep_create");
  // A flush ends once the connection stands. UCX 1.13 answers "invalid parameter" to messages sent before,
  // now and then, where it uses shared memory (seen here, 1 in 5 connections).
  const ucp_request_param_t none{};
  opening_ = ucp_ep_flush_nbx(endpoint_, &none);
  deadline_ns_ = wire::monotonic_ns() + kOpenNs;
}

Link::~Link() {
  close(socket_);
  if (opening_ != nullptr && !UCS_PTR_IS_ERR(opening_)) ucp_request_free(opening_);
  for (auto& [sequence, incoming] : received_)
    if (incoming->held != nullptr) ucp_am_data_release(worker_.get(), incoming->held);
}

ucs_status_t Link::on_message(void* self, const void* header, size_t header_bytes, void* data, size_t size,
                              const ucp_am_recv_param_t* param) {
  auto* const link = static_cast<Link*>(self);
  Header copy;
  if (header_bytes != sizeof copy || link->failed_) {
    link->failed_ = true;
    return UCS_OK;
  }
  std::memcpy(&copy, header, sizeof copy);
  return link->receive(copy, data, size, param->recv_attr);
}

ucs_status_t Link::receive(const Header& header, void* data, size_t size, std::uint64_t attributes) {
  if (header.kind == Kind::credit && header.amount <= on_the_way_ && size == 0) {
    on_the_way_ -= header.amount;
    return UCS_OK;
  }
  if (header.kind == Kind::done && sent_end_ && size == 0) {
    got_done_ = true;
    return UCS_OK;
  }
  const bool is_end = header.kind == Kind::end && size == 0;
  const bool is_data =
      header.kind == Kind::data && size > 0 && size <= kChunk && unwritten_ + cost(size) <= kCredit;
  const bool near = header.sequence - next_sequence_ <= kCredit / cost(0);
  if ((!is_end && !is_data) || !near || received_.count(header.sequence) != 0) {
    failed_ = true;
    return UCS_OK;
  }
  auto incoming = std::make_unique<Incoming>();
  incoming->link = this;
  incoming->size = size;
  incoming->end = is_end;
  if (is_data) unwritten_ += cost(size);
  ucs_status_t kept = UCS_OK;
  if (size != 0 && (attributes & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
    incoming->own.resize(size);
    incoming->here = false;
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    params.cb.recv_am = &on_received;
    params.user_data = incoming.get();
    void* const request = ucp_am_recv_data_nbx(worker_.get(), data, incoming->own.data(), size, &params);
    if (UCS_PTR_IS_ERR(request)) failed_ = true;
    if (request == nullptr) incoming->here = true;
    kept = UCS_INPROGRESS;
  } else if (size != 0 && (attributes & UCP_AM_RECV_ATTR_FLAG_DATA) != 0) {
    incoming->held = data;
    kept = UCS_INPROGRESS;
  } else if (size != 0) {
    const auto* const bytes = static_cast<const std::uint8_t*>(data);
    incoming->own.assign(bytes, bytes + size);
  }
  received_.emplace(header.sequence, std::move(incoming));
  return kept;
}

void Link::on_received(void* request, ucs_status_t status, size_t, void* user) {
  auto* const incoming = static_cast<Incoming*>(user);
  if (status == UCS_OK)
    incoming->here = true;
  else
    incoming->link->failed_ = true;  // and so it never gets into the socket
  ucp_request_free(request);
}

void Link::on_sent(void* request, ucs_status_t status, void* user) {
  auto* const outgoing = static_cast<Outgoing*>(user);
  outgoing->busy = false;
  if (status != UCS_OK) outgoing->link->failed_ = true;
  ucp_request_free(request);
}

void Link::on_error(void* self, ucp_ep_h, ucs_status_t status) {
  auto* const link = static_cast<Link*>(self);
  // After both have said that they are done, the other may be gone before us.
  if (!link->failed_ && !link->got_end_) std::fprintf(stderr, "gpupool-ucx: %s\n", ucs_status_string(status));
  link->failed_ = true;
}

void Link::send(Outgoing& outgoing, size_t size) {
  outgoing.busy = true;
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.send = &on_sent;
  params.user_data = &outgoing;
  void* const request = ucp_am_send_nbx(endpoint_, kMessage, &outgoing.header, sizeof outgoing.header,
                                        outgoing.data.get(), size, &params);
  if (UCS_PTR_IS_ERR(request)) failed_ = true;
  if (request == nullptr || UCS_PTR_IS_ERR(request)) outgoing.busy = false;
}

Link::Outgoing* Link::idle_control() {
  for (const auto& control : controls_)
    if (!control->busy) return control.get();
  controls_.push_back(std::make_unique<Outgoing>());
  controls_.back()->link = this;
  return controls_.back().get();
}

void Link::send_control(const Header& header) {
  if (failed_ || endpoint_ == nullptr) return;
  Outgoing* const control = idle_control();
  control->header = header;
  send(*control, 0);
}

void Link::send_end() {
  if (sent_end_) return;
  sent_end_ = true;
  deadline_ns_ = wire::monotonic_ns() + kEndNs;
  send_control({sent_sequence_++, Kind::end, 0});
}

bool Link::opened() {
  if (opening_ == nullptr) return true;
  const ucs_status_t status =
      UCS_PTR_IS_ERR(opening_) ? UCS_PTR_STATUS(opening_) : ucp_request_check_status(opening_);
  if (status == UCS_INPROGRESS && wire::monotonic_ns() < deadline_ns_) return false;
  if (!UCS_PTR_IS_ERR(opening_)) ucp_request_free(opening_);
  opening_ = nullptr;
  if (status != UCS_OK) failed_ = true;
  return true;
}

bool Link::read_socket() {
  if (sent_end_ || failed_ || endpoint_ == nullptr) return false;
  for (Outgoing& chunk : chunks_) {
    if (chunk.busy || on_the_way_ + cost(kChunk) > kCredit) continue;
    const ssize_t got = recv(socket_, chunk.data.get(), kChunk, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (got <= 0) {
      send_end();
      return true;
    }
    on_the_way_ += cost(static_cast<std::uint64_t>(got));
    chunk.header = {sent_sequence_++, Kind::data, 0};
    send(chunk, static_cast<size_t>(got));
    return true;
  }
  return false;
}

bool Link::write_socket() {
  const auto first = received_.find(next_sequence_);
  if (first == received_.end() || !first->second->here) return false;
  Incoming& incoming = *first->second;
  if (!incoming.end && !socket_broken_) {
    const ssize_t sent = ::send(socket_, incoming.bytes() + incoming.written,
                                incoming.size - incoming.written, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (sent < 0) {
      socket_broken_ = true;
      send_end();
    } else {
      incoming.written += static_cast<std::uint64_t>(sent);
      if (incoming.written < incoming.size) return true;
    }
  }
  if (incoming.end) {
    got_end_ = true;
    shutdown(socket_, SHUT_WR);
    send_end();  // nobody speaks half a conversation here
    send_control({0, Kind::done, 0});
  }
  if (!incoming.end) {
    unwritten_ -= cost(incoming.size);
    owed_credit_ += cost(incoming.size);
  }
  if (incoming.held != nullptr) ucp_am_data_release(worker_.get(), incoming.held);
  received_.erase(first);
  ++next_sequence_;
  if (owed_credit_ >= kCredit / 4) {
    send_control({0, Kind::credit, owed_credit_});
    owed_credit_ = 0;
  }
  return true;
}

std::uint32_t Link::interest() const {
  std::uint32_t events = 0;
  if (opening_ != nullptr && endpoint_ != nullptr) return events;
  if (!sent_end_ && !failed_ && endpoint_ != nullptr && on_the_way_ + cost(kChunk) <= kCredit)
    for (const Outgoing& chunk : chunks_)
      if (!chunk.busy) events |= EPOLLIN;
  const auto first = received_.find(next_sequence_);
  if (first != received_.end() && first->second->here && !socket_broken_) events |= EPOLLOUT;
  return events;
}

void Link::close_endpoint(bool force) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  closing_ = ucp_ep_close_nbx(endpoint_, &params);
  endpoint_ = nullptr;
  if (UCS_PTR_IS_ERR(closing_)) closing_ = nullptr;
}

void Link::look_at_end() {
  if (endpoint_ != nullptr) {
    const bool done = got_end_ && got_done_;
    const bool late = sent_end_ && wire::monotonic_ns() > deadline_ns_;
    if (done || late || failed_) close_endpoint(!done);
    return;
  }
  if (closing_ != nullptr && ucp_request_check_status(closing_) != UCS_INPROGRESS) {
    ucp_request_free(closing_);
    closing_ = nullptr;
  }
  // What came before a failure still goes to the socket.
  finished_ = closing_ == nullptr && (interest() & EPOLLOUT) == 0;
}

bool Link::step() {
  bool any = false;
  while (worker_.progress()) any = true;
  if (endpoint_ == nullptr || failed_ || opened()) {
    while (write_socket()) any = true;
    while (read_socket()) any = true;
  }
  look_at_end();
  return any;
}

}  // namespace gpupool::ucx
