// Reads a message that came from a guest, from a private copy that nobody else can change. Every access is
// checked against the copy's length; a short or malformed message throws ProtocolError, which ends the
// session. The encoding is the one of guest/runtime/message.hpp.
#pragma once

#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

// The peer broke the protocol. The text goes to the log, never to another tenant.
class ProtocolError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Reader {
 public:
  explicit Reader(std::span<const u8> bytes) : bytes_(bytes) {}

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof(T), sizeof(T) < 8 ? sizeof(T) : 8), sizeof(T));
    return value;
  }

  // A counted array of at most `limit` elements.
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  std::vector<T> get_array(u64 limit) {
    const u64 count = get<u64>();
    if (count > limit)
      throw ProtocolError("array of " + std::to_string(count) + " elements, at most " +
                          std::to_string(limit));
    const u8* data = take(count * sizeof(T), 8);  // before the memory for it is there
    std::vector<T> values(count);
    if (count != 0) std::memcpy(values.data(), data, count * sizeof(T));
    return values;
  }

  // A counted run of bytes, in place: valid as long as the message is. For images and other large payloads.
  std::span<const u8> get_bytes(u64 limit) {
    const u64 count = get<u64>();
    if (count > limit)
      throw ProtocolError("payload of " + std::to_string(count) + " bytes, at most " + std::to_string(limit));
    return {take(count, 8), count};
  }

  // So many bytes at the next multiple of 8, in place.
  std::span<const u8> get_span(u64 bytes) { return {take(bytes, 8), bytes}; }

  std::string get_string(u64 limit) {
    const std::span<const u8> bytes = get_bytes(limit);
    if (std::memchr(bytes.data(), 0, bytes.size()) != nullptr)
      throw ProtocolError("string with a NUL inside");
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  // An enum or flag word that must be at most `highest`.
  template <typename T>
  T get_enum(u64 highest) {
    const T value = get<T>();
    if (static_cast<u64>(value) > highest) throw ProtocolError("enum value out of range");
    return value;
  }

  [[nodiscard]] u64 left() const { return bytes_.size() - used_; }
  // Called by the dispatcher: a message with bytes left over is malformed.
  void finish() const {
    if (left() != 0) throw ProtocolError(std::to_string(left()) + " bytes left over");
  }

 private:
  const u8* take(u64 bytes, u64 alignment) {
    const u64 start = (used_ + alignment - 1) / alignment * alignment;
    if (start > bytes_.size() || bytes > bytes_.size() - start) throw ProtocolError("message too short");
    used_ = start + bytes;
    return bytes_.data() + start;
  }

  std::span<const u8> bytes_;
  u64 used_ = 0;
};

// The number in an enum of a struct that was received as bytes: any may stand there, also none of the enum's,
// and reading that as the enum would be undefined.
template <typename Enum>
  requires std::is_enum_v<Enum>
u32 number_in(const Enum& field) {
  static_assert(sizeof(Enum) == sizeof(u32));
  u32 number = 0;
  std::memcpy(&number, &field, sizeof number);
  return number;
}

// Builds an answer in the same encoding.
class Writer {
 public:
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    std::memcpy(grow(sizeof(T), sizeof(T) < 8 ? sizeof(T) : 8), &value, sizeof(T));
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put_array(const T* values, u64 count) {
    put(count);
    if (count != 0) std::memcpy(grow(count * sizeof(T), 8), values, count * sizeof(T));
  }
  // As they are, without a count.
  void put_span(const void* data, u64 bytes) {
    const auto* const from = static_cast<const u8*>(data);
    bytes_.insert(bytes_.end(), from, from + bytes);
  }
  [[nodiscard]] std::span<const u8> bytes() const { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  u8* grow(u64 bytes, u64 alignment) {
    const u64 start = (bytes_.size() + alignment - 1) / alignment * alignment;
    bytes_.resize(start + bytes);
    return bytes_.data() + start;
  }
  std::vector<u8> bytes_;
};

}  // namespace gpupool::wire
