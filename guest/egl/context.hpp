// A context of OpenGL in the client: the commands that have not been sent yet, and what it can answer itself.
//
// Invariant: a context is used by the thread in which it is current, and by no other, so nothing here is
// locked. Commands are gathered and sent when there are many, when the program waits for something, and at
// glFlush and everything in EGL that flushes.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "gl_messages.hpp"
#include "guest/runtime/private_table.hpp"
#include "wire/cpp/gl_message.hpp"
#include "wire/cpp/gl_pixels.hpp"
#include "wire/cpp/layout.hpp"

namespace gpupool::guest {

// What came back for a command. Empty where the worker refused it: then nothing is written to the program.
class Answer {
 public:
  Answer() = default;
  Answer(const u8* data, u64 size) : data_(data), size_(size) {}

  template <typename T>
  T get() {
    T value{};
    if (const u8* from = take(sizeof(T), sizeof(T))) std::memcpy(&value, from, sizeof(T));
    return value;
  }
  template <typename T>
  void array(T* out, u64 room) {
    if (room == wire::kNullArray || room == 0) return;
    if (const u8* from = take(room * sizeof(T), 8)) std::memcpy(out, from, room * sizeof(T));
  }
  // As many elements as the driver has written (hostd/worker/opengl/probe.hpp).
  template <typename T>
  void probed(T* out) {
    const u64 count = get<u64>();
    if (count > wire::kMostProbed || out == nullptr) return;
    array(out, count);
  }
  // What is left.
  [[nodiscard]] const u8* rest() const { return data_ + used_; }
  [[nodiscard]] u64 left() const { return size_ - used_; }

  static u64 bytes_of(u64 count, u64 size) { return count == wire::kNullArray ? 0 : count * size + 8; }

 private:
  const u8* take(u64 bytes, u64 alignment) {
    const u64 start = (used_ + alignment - 1) / alignment * alignment;
    if (start > size_ || bytes > size_ - start) return nullptr;
    used_ = start + bytes;
    return data_ + start;
  }
  const u8* data_ = nullptr;
  u64 size_ = 0;
  u64 used_ = 0;
};

// Vertices and indices in the program's own memory, which OpenGL ES knows with vertex array 0 alone.
struct ClientArrays {
  static constexpr u32 kMost = 32;
  struct Attribute {
    const u8* pointer = nullptr;
    u32 type = 0;
    i32 size = 0;
    i32 stride = 0;  // as given; 0 means one beside the other
    u32 divisor = 0;
    bool normalized = false;
    bool integer = false;
  };
  bool possible = false;  // a context of OpenGL ES
  bool restarts = false;  // ... of 3.0 or later, which may have an index that ends a primitive
  u32 vertex_array = 0;   // the one that is bound
  u32 elements = 0;       // the buffer of indices of vertex array 0
  u32 enabled = 0;        // attributes of vertex array 0, by bit
  u32 ours = 0;           // ... that point to the program's memory
  Attribute attributes[kMost];
  u32 vertex_buffer = 0, index_buffer = 0;  // of the context's own, made when a draw first needs them
};

class Context {
 public:
  Context(const PrivateTable& table, u32 index);
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  [[nodiscard]] u32 index() const { return index_; }

  // One command: begin, its arrays in order, then end or ask. The pointer is valid until the first array.
  template <typename Arguments>
  Arguments* begin(wire::GlFunction function, u16 flags = 0) {
    constexpr u64 kBytes = (sizeof(wire::CommandHead) + sizeof(Arguments) + 7) / 8 * 8;
    if (used_ + kBytes > kGather) [[unlikely]]
      flush();
    start_ = used_;
    used_ += kBytes;
    auto* const head = reinterpret_cast<wire::CommandHead*>(batch_.data() + start_);
    *head = wire::CommandHead{static_cast<u16>(function), flags, 0};
    return reinterpret_cast<Arguments*>(head + 1);
  }
  void array(const void* elements, u64 count, u64 size);
  // An array that may travel beside the batch.
  void content(const void* elements, u64 count, u64 size);
  void strings(const char* const* texts, const i32* lengths, u64 count);
  void end(bool draws);
  // Sends everything and waits; the answer is valid until the next command.
  Answer ask(u64 room);
  // The same for an answer that goes right into the window: `take` sees it there.
  template <typename Take>
  void ask_large(u64 room, Take take) {
    if (room <= kReplyRoom) {
      const Answer small = ask(room);
      if (small.left() != 0) take(small.rest(), small.left());
      return;
    }
    WindowPiece piece;
    const Answer answer = ask_in_window(room, piece);
    if (answer.left() != 0) take(answer.rest(), answer.left());
    if (piece.address != nullptr) table_.give_back(piece, ticket_);
  }
  // The same for exactly so many bytes that are to lie at `to`, where nothing else is written; true when they
  // are there.
  bool ask_into(void* to, u64 bytes);
  void flush();

  // Names, of which the worker makes many at a time.
  void names(wire::GlFunction function, i32 count, u32* out);

  // --- errors: the first that this side found, until glGetError takes it
  void fail(u32 error) {
    if (error_ == 0) error_ = error;
  }
  u32 take_error();
  // Whether a command has been sent or gathered since the driver last said that there is no error.
  [[nodiscard]] bool untouched() const { return untouched_ && used_ == sizeof(wire::BatchHead); }
  void no_error() { untouched_ = true; }

  // --- what the client knows
  wire::PixelStore pack, unpack;
  u32 pack_buffer = 0, unpack_buffer = 0;
  std::unordered_map<u32, std::string> texts;      // what glGetString has answered
  std::vector<std::string> extensions;             // what glGetStringi answers, once asked
  std::unordered_map<u32, std::vector<u8>> facts;  // by name: what glGet has answered
  std::unordered_map<u32, u32> bindings;           // glBindBuffer's, by target
  ClientArrays arrays;
  // A mapped buffer: what the program sees of it is here.
  struct Mapping {
    u32 target = 0;  // 0: mapped by name
    u32 buffer = 0;
    i64 offset = 0;
    u32 access = 0;
    std::vector<u8> bytes;
  };
  std::vector<std::unique_ptr<Mapping>> mappings;
  bool destroyed = false;  // by EGL, while it is current

 private:
  static constexpr u64 kGather = 48u << 10;  // so many bytes are sent without being asked for
  static constexpr u64 kEarly = 4u << 10;    // ... and so many after a draw, if the worker has nothing to do
  static constexpr u64 kContent = 8u << 10;  // content of so many bytes travels beside the batch
  static constexpr u64 kReplyRoom = wire::kReplyBytes;

  void seal();
  void drop();
  void append(const void* data, u64 bytes);
  void send_with_content();
  void lost(i32 result);
  Answer ask_in_window(u64 room, WindowPiece& piece, void* copy_to = nullptr);
  i32 post(const u8* payload, u64 bytes, u16 flags, WindowPiece* bulk, bool wait, u32& answered,
           void* copy_to = nullptr);

  const PrivateTable& table_;
  u32 index_;
  u32 error_ = 0;
  u64 used_ = sizeof(wire::BatchHead);
  u64 start_ = 0;
  u64 ticket_ = 0;
  const void* content_ = nullptr;
  u64 content_bytes_ = 0;
  bool too_large_ = false;
  bool untouched_ = false;
  std::vector<u8> batch_;
  std::vector<u8> answer_;
  std::unordered_map<u16, std::vector<u32>> pools_;
};

// The context that is current in this thread, or null.
extern thread_local Context* t_context __attribute__((tls_model("initial-exec")));
inline Context* current_context() {
  return t_context;
}

// What a command without an implementation does: an error, and one line a process.
void refuse_unsupported(const char* name, const char* reason, std::atomic<bool>& said);

}  // namespace gpupool::guest
