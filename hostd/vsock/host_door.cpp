#include "hostd/vsock/host_door.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <charconv>

namespace gpupool::vsock {

bool HostDoor::parse(std::string_view line, u32& port) {
  constexpr std::string_view kWord = "CONNECT ";
  if (!line.starts_with(kWord)) return false;
  line.remove_prefix(kWord.size());
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), port);
  return error == std::errc() && end == line.data() + line.size() && !line.empty();
}

void HostDoor::enter(Descriptor socket) {
  if (visitors_.size() >= kMostWaiting) return;  // closes it
  const u64 visitor = next_++;
  const int fd = socket.get();
  visitors_[visitor] = std::move(socket);
  order_.push_back({visitor, Clock::now() + kPatience});
  if (!watch_(visitor, fd)) visitors_.erase(visitor);
}

void HostDoor::ready(u64 visitor) {
  const auto found = visitors_.find(visitor);
  if (found == visitors_.end()) return;
  char text[kLongestLine];
  const int socket = found->second.get();
  // Only looked at: what follows the line is for the guest.
  const ssize_t count = recv(socket, text, sizeof text, MSG_PEEK | MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
  const std::string_view seen(text, count < 0 ? 0 : static_cast<size_t>(count));
  const size_t end = seen.find('\n');
  if (end == std::string_view::npos && !seen.empty() && seen.size() < sizeof text) return;  // more to come
  u32 port = 0;
  Descriptor taken = std::move(found->second);
  visitors_.erase(found);
  if (end == std::string_view::npos || !parse(seen.substr(0, end), port)) return;
  if (recv(socket, text, end + 1, MSG_DONTWAIT) != static_cast<ssize_t>(end + 1)) return;
  offer_(std::move(taken), port);
}

HostDoor::Clock::time_point HostDoor::deadline() const {
  return order_.empty() ? Clock::time_point::max() : order_.front().until;
}

void HostDoor::expire(Clock::time_point now) {
  while (!order_.empty() && (order_.front().until <= now || !visitors_.contains(order_.front().visitor))) {
    visitors_.erase(order_.front().visitor);
    order_.pop_front();
  }
}

}  // namespace gpupool::vsock
