// Target: gpupool-renderer's parser (hostd/renderer/session.hpp) as a hostile OpenGL client sees it, with
// a backend that draws nothing. The input's first byte says whether descriptors can be passed; the rest are
// steps: commands whose words are mostly small, so that they name what is there, or bytes as they are.
//
// What must hold: the backend hears only of resources that it made and that are not gone, with memory that
// is mapped as far as the transfer goes; the account is never above its limit, and all comes back.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "hostd/renderer/session.hpp"

using namespace gpupool;
using namespace gpupool::renderer;

namespace {

constexpr u64 kLimit = 64 << 20;
constexpr u64 kSharedLimit = 16 << 20;
constexpr u32 kMostHandles = 16;
constexpr size_t kMostSteps = 64;
constexpr u8 kFullWord = 240;

void require(bool holds) {
  if (!holds) std::abort();
}

class Bytes : public Stream {
 public:
  explicit Bytes(bool passes) : passes_(passes) {}
  void add(const void* data, size_t size) {
    const auto* from = static_cast<const u8*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  bool read(void* data, size_t size) override {
    if (size > bytes_.size() - at_) return false;
    if (size != 0) std::memcpy(data, bytes_.data() + at_, size);  // an empty vector's data may be null
    at_ += size;
    return true;
  }
  bool write(const void* data, size_t size) override {
    u8 sum = 0;
    for (size_t i = 0; i < size; ++i) sum ^= static_cast<const u8*>(data)[i];
    seen_ = sum;
    return true;
  }
  bool write_descriptor(int fd) override {
    require(passes_ && (fd < 0 || lseek(fd, 0, SEEK_END) > 0));
    return true;
  }
  [[nodiscard]] bool passes_descriptors() const override { return passes_; }
  bool ended() override { return at_ == bytes_.size(); }

 private:
  bool passes_;
  std::vector<u8> bytes_;
  size_t at_ = 0;
  volatile u8 seen_ = 0;
};

class Purse : public Account {
 public:
  bool reserve(u64 bytes) override {
    if (bytes > kLimit - used_) return false;
    used_ += bytes;
    return true;
  }
  void give_back(u64 bytes) override {
    require(bytes <= used_);
    used_ -= bytes;
  }
  [[nodiscard]] u64 used() const { return used_; }

 private:
  u64 used_ = 0;
};

class Nothing : public Backend {
 public:
  bool create_context(const std::string& name) override { return name.size() < 5000; }
  std::vector<u8> capabilities(u32 set) override { return std::vector<u8>(set * 100); }
  bool create(u32 handle, const Shape& shape) override {
    require(handle != 0 && !there_.contains(handle));
    if (shape.format == 11) return false;  // as OpenGL may
    there_[handle] = nullptr;
    return true;
  }
  bool attach(u32 handle, iovec* memory) override {
    require(there_.contains(handle));
    there_[handle] = memory;
    touch(*memory, 0);
    return true;
  }
  void destroy(u32 handle) override { require(there_.erase(handle) == 1); }
  bool read(u32 handle, u32, u32, u32, const Box&, u64 offset, iovec* memory) override {
    return move(handle, offset, memory);
  }
  bool write(u32 handle, u32, u32, u32, const Box&, u64 offset, iovec* memory) override {
    return move(handle, offset, memory);
  }
  bool submit(u32* words, u32 count) override {
    for (u32 i = 0; i < count; ++i) sum_ = sum_ ^ words[i];
    return true;
  }
  void flush() override {}
  void mark() override {}
  bool reach(u64) override { return true; }
  void settle_queries() override {}
  u32 fence() override { return ++fence_; }
  u32 passed() override { return fence_; }

 private:
  bool move(u32 handle, u64 offset, iovec* memory) {
    const auto found = there_.find(handle);
    require(found != there_.end());
    if (memory == nullptr) memory = found->second;
    require(memory != nullptr);
    touch(*memory, offset);
    return true;
  }
  static void touch(const iovec& memory, u64 offset) {
    require(offset <= memory.iov_len);
    auto* bytes = static_cast<volatile u8*>(memory.iov_base);
    if (offset < memory.iov_len) bytes[offset] = bytes[memory.iov_len - 1];
  }
  std::map<u32, iovec*> there_;
  u32 fence_ = 0;
  volatile u32 sum_ = 0;
};

class NoTurn : public Turn {
 public:
  void take() override {}
  void submitted() override {}
};

class Input {
 public:
  Input(const u8* data, size_t size) : at_(data), end_(data + size) {}
  [[nodiscard]] bool empty() const { return at_ == end_; }
  u8 byte() { return at_ == end_ ? u8{0} : *at_++; }
  u32 word() {
    const u8 first = byte();
    if (first < kFullWord) return first;
    u32 value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return value;
  }

 private:
  const u8* at_;
  const u8* end_;
};

// How many words each command has, by number; submit has as many as the input says.
constexpr u32 kWords[] = {0, 0, 10, 1, 11, 11, 0, 2, 0, 0, 0, 1, 11, 10, 10};

void add_step(Input& input, Bytes& stream) {
  const u32 command = input.byte() % 16;
  if (command == 15) {
    const u32 word = input.word();
    return stream.add(&word, sizeof word);
  }
  std::vector<u32> words(command == 6 ? input.byte() % 32 : kWords[command]);
  const u32 lie = input.byte();
  for (u32& word : words) word = input.word();
  const u32 length = lie < 250 ? static_cast<u32>(words.size()) : input.word();
  const u32 header[2] = {length, command};
  stream.add(header, sizeof header);
  stream.add(words.data(), words.size() * sizeof(u32));
  if (command != 5) return;
  const std::vector<u8> data(std::min<u32>(words[10], 8192), 7);
  stream.add(data.data(), data.size());
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  Input input(data, size);
  Bytes stream((input.byte() & 1) != 0);
  const u32 begin[] = {4, 8, 0x7473'6574};
  stream.add(begin, sizeof begin);
  for (size_t i = 0; i < kMostSteps && !input.empty(); ++i) add_step(input, stream);
  Purse purse;
  {
    Nothing backend;
    NoTurn turn;
    Resources resources(purse, kMostHandles, kSharedLimit);
    Session session(stream, backend, resources, turn);
    try {
      while (session.serve()) require(purse.used() == resources.bytes());
    } catch (const std::runtime_error&) {
      // A protocol error, or no more memory: the session ends, as it would.
    }
    for (u32 handle = 0; handle < 256; ++handle) resources.remove(handle);
  }
  return 0;
}
