// One command of OpenGL as the worker reads it, and the interface that handlers are written against.
//
// A batch has been copied out of the window before anything here looks at it. What breaks the protocol (an
// array that is not as long as its other arguments say, bytes left over, an answer nobody waits for) throws
// wire::ProtocolError. What an honest program may do wrong is the driver's business, or refuse()d.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "gl_api.hpp"  // generated
#include "gl_enums.hpp"
#include "wire/cpp/gl_message.hpp"
#include "wire/cpp/gl_pixels.hpp"
#include "wire/cpp/reader.hpp"

namespace gpupool::worker {

class GlCommand {
 public:
  GlCommand(wire::CommandHead head, std::span<const u8> bytes) : head_(head), bytes_(bytes) {}

  [[nodiscard]] u16 flags() const { return head_.flags; }
  [[nodiscard]] u16 function() const { return head_.function; }

  // The fixed part, first of all.
  template <typename T>
  T arguments() {
    T values{};
    std::memcpy(&values, take((sizeof(T) + 7) / 8 * 8), sizeof(T));
    return values;
  }
  // An array that must have `expected` elements; null where the client's pointer was. `content`: the driver
  // only copies it, so it may lie in the window, which the client can change meanwhile.
  template <typename T>
  const T* array(u64 count, u64 expected, bool content = false) {
    if (count == wire::kNullArray) return nullptr;
    if (count != expected || count > wire::kMostGlData / sizeof(T))
      throw wire::ProtocolError("an array of another length than the command's");
    // Of a format that we do not know a pixel has no size, and a driver that knows it reads one all the same.
    static constexpr u64 kNothing[32] = {};
    if (count == 0) return reinterpret_cast<const T*>(kNothing);
    if (content && (head_.flags & wire::kDataInBulk) != 0)
      return reinterpret_cast<const T*>(bulk(count * sizeof(T)));
    return reinterpret_cast<const T*>(take((count * sizeof(T) + 7) / 8 * 8));
  }
  // A string, ended by a NUL here; `length` is what the command says beside it, or negative.
  const char* string(u64 count, i64 length = -1);
  const char* const* strings(u64 count, u64 expected);
  void finish() const {
    if (used_ != bytes_.size()) throw wire::ProtocolError("bytes left over in a command");
  }

  // --- answers; only the last command of a batch that is waited for may have one
  void allow_answer(wire::Writer& out, u64 room, std::span<u8> window) {
    out_ = &out;
    room_ = room;
    window_ = window;
  }
  void allow_bulk(std::span<const u8> content) { content_ = content; }
  // Memory for an array that the driver writes; null where the client's pointer was.
  template <typename T>
  T* room(u64 count, u64 expected) {
    if (count == wire::kNullArray) return nullptr;
    if (count != expected || count > room_ / sizeof(T))
      throw wire::ProtocolError("an answer of another length than the command's");
    must_answer();
    room_ -= count * sizeof(T);
    rooms_.emplace_back(count * sizeof(T) / 8 + 1);
    return reinterpret_cast<T*>(rooms_.back().data());
  }
  template <typename T>
  void put(const T& value) {
    must_answer();
    out_->put(value);
  }
  template <typename T>
  void put_room(const T* values, u64 count) {
    if (values == nullptr) return;
    align();
    out_->put_span(values, count * sizeof(T));
  }
  void put_bytes(const void* data, u64 bytes);
  template <typename T>
  void put_counted(const T* values, u64 count) {
    must_answer();
    out_->put_array(values, count);
  }
  // Where a large answer goes: the window. Empty when the answer goes to the reply box.
  [[nodiscard]] std::span<u8> window() const { return window_; }
  [[nodiscard]] u64 room_left() const { return room_; }
  void must_answer() const {
    if (out_ == nullptr) throw wire::ProtocolError("a command that answers, and nobody waits");
  }
  // So many bytes were written to the window.
  void answered_in_window(u64 bytes) { in_window_ = bytes; }
  [[nodiscard]] u64 in_window() const { return in_window_; }

 private:
  void align();
  const u8* take(u64 bytes) {
    if (bytes > bytes_.size() - used_) throw wire::ProtocolError("a command that is too short");
    const u8* const at = bytes_.data() + used_;
    used_ += bytes;
    return at;
  }
  const u8* bulk(u64 bytes) const {
    if (content_.size() != bytes) throw wire::ProtocolError("content of another length than the command's");
    return content_.data();
  }

  wire::CommandHead head_;
  std::span<const u8> bytes_;
  u64 used_ = 0;
  std::span<const u8> content_;
  wire::Writer* out_ = nullptr;
  u64 room_ = 0;
  u64 in_window_ = 0;
  std::span<u8> window_;
  std::deque<std::vector<u64>> rooms_;
  std::deque<std::string> strings_;
  std::deque<std::vector<const char*>> lists_;
};

class GlStorage;  // storage.hpp

// A context, current in the driver while its commands are handled.
struct GlContext {
  const GlApi& api;
  void* context = nullptr;  // EGL's
  void* draw = nullptr;     // EGL's surfaces; null for none
  void* read = nullptr;
  u32 index = 0;                                         // the client's
  u32 client_api = 0;                                    // EGL_OPENGL_API or EGL_OPENGL_ES_API
  std::unordered_map<u64, gl::GLsync>* syncs = nullptr;  // the session's, by the client's names
  std::shared_ptr<GlStorage> storage;                    // what the objects that it shares have taken
  bool drew = false;                                     // no fence is behind what it has drawn
  bool waits = false;                                    // an answer to its thread waits for the GPU
  u32 error = 0;                                         // one that we found, until glGetError takes it

  // An error of the program's that the driver is not asked about.
  void fail(u32 which) {
    if (error == 0) error = which;
  }
  // Takes the driver's error over, so that what we ask next does not hide behind it.
  bool collect() {
    const u32 found = api.glGetError();
    if (found != gl::GL_NO_ERROR) fail(found);
    return found == gl::GL_NO_ERROR;
  }
  void refuse(const GlCommand&) { fail(gl::GL_INVALID_OPERATION); }
  // What the driver says that is bound there.
  [[nodiscard]] u32 bound(u32 binding) const {
    i32 name = 0;
    api.glGetIntegerv(binding, &name);
    return static_cast<u32>(name);
  }
};

using GlHandler = void (*)(GlContext&, GlCommand&);

}  // namespace gpupool::worker
