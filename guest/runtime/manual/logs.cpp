// cuLogs*: what this runtime has logged in this process, and the calls that failed.
//
// An iterator is the number of a message, counted from the first; the newest messages are kept within the
// bytes that cuda.h names for the driver's buffer.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "guest/runtime/log_listener.hpp"
#include "guest_api.hpp"
#include "wire/cpp/types.hpp"

struct CUlogsCallbackEntry_st {
  CUlogsCallback function = nullptr;
  void* data = nullptr;
};

namespace gpupool::guest {
namespace {

constexpr size_t kMaxBytes = 25600;   // cuda.h on cuLogsDumpToMemory
constexpr size_t kMaxMessages = 512;  // 50 bytes each
constexpr char kLost[] = "[CUDA][W] older messages are lost\n";
constexpr char kNoRoom[] = "[CUDA][W] older messages are left out: the buffer is too small\n";

struct Message {
  std::string text;  // of a line; empty for a failure
  const char* function = nullptr;
  int result = 0;
};

struct History {
  std::mutex mutex;
  std::deque<Message> messages;
  u32 first = 0;  // number of messages.front()
  std::vector<std::shared_ptr<CUlogsCallbackEntry_st>> callbacks;

  u32 next() const { return first + static_cast<u32>(messages.size()); }
};

History& history() {
  static auto& all = *new History();  // programs ask in exit handlers
  return all;
}

std::string text_of(const Message& message) {
  if (message.function == nullptr) return "[CUDA][W] " + message.text + "\n";
  const char* name = nullptr;
  const bool known = api::cuGetErrorName(static_cast<CUresult>(message.result), &name) == CUDA_SUCCESS;
  return std::string("[CUDA][E] ") + message.function + " returned " +
         (known ? std::string(name) : std::to_string(message.result)) + "\n";
}

void remember(Message message) {
  History& all = history();
  std::vector<std::shared_ptr<CUlogsCallbackEntry_st>> callbacks;
  std::string text;
  CUlogLevel level = message.function == nullptr ? CU_LOG_LEVEL_WARNING : CU_LOG_LEVEL_ERROR;
  {
    const std::lock_guard lock(all.mutex);
    callbacks = all.callbacks;
    if (!callbacks.empty()) text = text_of(message);
    all.messages.push_back(std::move(message));
    if (all.messages.size() > kMaxMessages) {
      all.messages.pop_front();
      ++all.first;
    }
  }
  // Without the lock: a callback may call CUDA, and that may fail. It is not told of what it causes itself.
  thread_local bool t_in_callback = false;
  if (t_in_callback) return;
  t_in_callback = true;
  for (const auto& each : callbacks) each->function(each->data, level, text.data(), text.size());
  t_in_callback = false;
}

// The newest messages from `iterator` on that fit `limit` bytes, oldest first; moves the iterator past them.
// False when there are some and none fits.
bool collect(CUlogIterator* iterator, size_t limit, std::string& out) {
  History& all = history();
  const std::lock_guard lock(all.mutex);
  const u32 wanted = iterator == nullptr ? 0 : *iterator;
  const bool lost = wanted < all.first;
  const u32 from = lost ? all.first : wanted;
  std::vector<std::string> texts;
  size_t bytes = 0;
  u32 number = all.next();
  while (number > from) {
    std::string text = text_of(all.messages[number - 1 - all.first]);
    if (bytes + text.size() > limit) break;
    bytes += text.size();
    texts.push_back(std::move(text));
    --number;
  }
  const bool cut = number > from;
  const std::string head = cut ? kNoRoom : lost ? kLost : "";
  while (!texts.empty() && bytes + head.size() > limit) {
    bytes -= texts.back().size();
    texts.pop_back();
  }
  if (texts.empty() && from < all.next()) return false;
  out = texts.empty() ? "" : head;
  for (auto text = texts.rbegin(); text != texts.rend(); ++text) out += *text;
  if (iterator != nullptr) *iterator = all.next();
  return true;
}

void remember_line(const char* text, size_t size) {
  Message message;
  message.text.assign(text, size);
  remember(std::move(message));
}

void remember_failure(const char* function, int result) {
  Message message;
  message.function = function;
  message.result = result;
  remember(std::move(message));
}

[[maybe_unused]] const bool kListening = listen_to_log({&remember_line, &remember_failure});

}  // namespace

namespace api {

CUresult cuLogsRegisterCallback(CUlogsCallback function, void* data, CUlogsCallbackHandle* out) {
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto entry = std::make_shared<CUlogsCallbackEntry_st>();
  entry->function = function;
  entry->data = data;
  History& all = history();
  const std::lock_guard lock(all.mutex);
  if (out != nullptr) *out = entry.get();
  all.callbacks.push_back(std::move(entry));
  return CUDA_SUCCESS;
}

CUresult cuLogsUnregisterCallback(CUlogsCallbackHandle callback) {
  History& all = history();
  const std::lock_guard lock(all.mutex);
  const auto gone = std::erase_if(all.callbacks, [=](const auto& each) { return each.get() == callback; });
  return gone != 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLogsCurrent(CUlogIterator* iterator, unsigned int flags) {
  if (iterator == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  History& all = history();
  const std::lock_guard lock(all.mutex);
  *iterator = all.next();
  return CUDA_SUCCESS;
}

CUresult cuLogsDumpToMemory(CUlogIterator* iterator, char* buffer, size_t* size, unsigned int flags) {
  if (buffer == nullptr || size == nullptr || *size == 0 || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  std::string text;
  const bool fits = collect(iterator, *size - 1 < kMaxBytes ? *size - 1 : kMaxBytes, text);
  std::memcpy(buffer, text.c_str(), text.size() + 1);
  *size = text.size();
  return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLogsDumpToFile(CUlogIterator* iterator, const char* path, unsigned int flags) {
  if (path == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return CUDA_ERROR_INVALID_VALUE;
  std::string text;
  collect(iterator, kMaxBytes, text);  // each message is shorter
  size_t at = 0;
  while (at < text.size()) {
    const ssize_t written = write(file, text.data() + at, text.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    at += static_cast<size_t>(written);
  }
  close(file);
  return at == text.size() ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

}  // namespace api
}  // namespace gpupool::guest
