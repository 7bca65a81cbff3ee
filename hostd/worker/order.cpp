#include "hostd/worker/order.hpp"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace gpupool::worker {
namespace {

constexpr size_t kMostBytes = 64 << 10;
constexpr size_t kMostDescriptors = 128;  // 16 connections, three pages for each of 16 devices, and a few

void take_descriptors(msghdr& message, std::vector<int>& descriptors) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    const size_t before = descriptors.size();
    descriptors.resize(before + count);
    std::memcpy(&descriptors[before], CMSG_DATA(part), count * sizeof(int));
  }
}

// "@2" becomes the number that the third descriptor has here, and "@2,@3" those of two.
bool name_descriptor(std::string& word, const std::vector<int>& descriptors) {
  if (word.size() < 2 || word[0] != '@') return true;
  std::string named;
  const char* text = word.c_str();
  while (true) {
    if (*text != '@') return false;
    char* end = nullptr;
    const unsigned long index = std::strtoul(text + 1, &end, 10);
    if (end == text + 1 || index >= descriptors.size()) return false;
    named += std::to_string(descriptors[index]);
    if (*end == 0) break;
    if (*end != ',') return false;
    named += ',';
    text = end + 1;
  }
  word = named;
  return true;
}

}  // namespace

bool receive_order(int fd, Order& order, std::string& error) {
  std::vector<char> bytes(kMostBytes);
  alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptors * sizeof(int))] = {};
  iovec piece{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got == 0) return false;
  if (got < 0) {
    error = std::strerror(errno);
    return false;
  }
  take_descriptors(message, order.descriptors);
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || bytes[static_cast<size_t>(got) - 1] != 0) {
    error = "cut off";
    return false;
  }
  const std::string_view text(bytes.data(), static_cast<size_t>(got));
  for (size_t start = 0; start < text.size();) {
    const size_t end = text.find('\0', start);
    order.words.emplace_back(text.substr(start, end - start));
    start = end + 1;
  }
  for (std::string& word : order.words)
    if (!name_descriptor(word, order.descriptors)) {
      error = "a descriptor is missing";
      return false;
    }
  return true;
}

void show_session_id(int argc, char** argv, unsigned long long session_id) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--session-id") != 0) continue;
    const std::string number = std::to_string(session_id);
    const size_t room = std::strlen(argv[i + 1]);
    if (number.size() > room) return;
    std::memset(argv[i + 1], 0, room);
    std::memcpy(argv[i + 1], number.data(), number.size());
  }
}

}  // namespace gpupool::worker
