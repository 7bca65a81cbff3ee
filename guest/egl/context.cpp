#include "guest/egl/context.hpp"

#include <algorithm>
#include <utility>

#include "gl_client.hpp"
#include "guest/runtime/log.hpp"
#include "wire_functions.hpp"

namespace gpupool::guest {

thread_local Context* t_context __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {
constexpr u64 kNameBlock = 32;
}

Context::Context(const PrivateTable& table, u32 index)
    : table_(table), index_(index), batch_(kGather + 4096), answer_(kReplyRoom) {
  *reinterpret_cast<wire::BatchHead*>(batch_.data()) = wire::BatchHead{index, 0};
}

void Context::append(const void* data, u64 bytes) {
  const u64 padded = (bytes + 7) / 8 * 8;
  if (used_ + padded > batch_.size()) batch_.resize((used_ + padded) * 2);
  if (bytes != 0) std::memcpy(batch_.data() + used_, data, bytes);
  if (padded != bytes) std::memset(batch_.data() + used_ + bytes, 0, padded - bytes);
  used_ += padded;
}

void Context::array(const void* elements, u64 count, u64 size) {
  if (count == wire::kNullArray) return;
  if (count > wire::kMostGlBatch / 2 / size) {
    too_large_ = true;
    return;
  }
  append(elements, count * size);
}

void Context::content(const void* elements, u64 count, u64 size) {
  if (count == wire::kNullArray) return;
  if (count * size < kContent) return array(elements, count, size);
  if (count > wire::kMostGlData / size) {
    too_large_ = true;
    return;
  }
  content_ = elements;
  content_bytes_ = count * size;
}

void Context::strings(const char* const* texts, const i32* lengths, u64 count) {
  if (count == wire::kNullArray) return;
  for (u64 i = 0; i < count; ++i) {
    const char* const text = texts[i] == nullptr ? "" : texts[i];
    const u64 length =
        lengths == nullptr || lengths[i] < 0 ? std::strlen(text) : static_cast<u64>(lengths[i]);
    if (used_ + length > wire::kMostGlBatch / 2) {
      too_large_ = true;
      return;
    }
    append(&length, sizeof length);
    append(text, length);
  }
}

// The command is whole: says how long it is.
void Context::seal() {
  reinterpret_cast<wire::CommandHead*>(batch_.data() + start_)->bytes = static_cast<u32>(used_ - start_);
}

void Context::drop() {
  used_ = start_;
  too_large_ = false;
  content_ = nullptr;
  fail(gl::GL_OUT_OF_MEMORY);
}

void Context::end(bool draws) {
  if (too_large_) [[unlikely]]
    return drop();
  seal();
  if (content_ != nullptr) return send_with_content();
  if (used_ > kGather || (draws && used_ > kEarly && table_.idle())) flush();
}

// With the session gone every call fails, and the program learns it from glGetError and
// glGetGraphicsResetStatus.
void Context::lost(i32 result) {
  log_debug("a message of OpenGL was not sent: %d", result);
  fail(gl::GL_CONTEXT_LOST);
}

i32 Context::post(const u8* payload, u64 bytes, u16 flags, WindowPiece* bulk, bool wait, u32& answered,
                  void* copy_to) {
  PrivateMessage message;
  message.function = static_cast<u16>(wire::Function::gl_batch);
  message.flags = flags;
  WindowPiece carried;
  untouched_ = false;
  if (bulk != nullptr) {
    message.bulk_offset = bulk->offset;
    message.bulk_size = bulk->size;
    message.copy_to = copy_to;
    message.copy_bytes = copy_to == nullptr ? 0 : bulk->size;
  }
  if (bytes <= wire::kInlineBytes) {
    message.payload = payload;
    message.payload_bytes = static_cast<u32>(bytes);
  } else {
    if (!table_.take(bytes, carried)) return 2;  // CUDA_ERROR_OUT_OF_MEMORY
    std::memcpy(carried.address, payload, bytes);
    message.flags |= wire::kBulkIn | wire::kPayloadInBulk;
    message.bulk_offset = carried.offset;
    message.bulk_size = bytes;
  }
  const i32 result = wait ? table_.wait(message, ticket_, answer_.data(), kReplyRoom, answered)
                          : table_.send(message, ticket_);
  if (carried.address != nullptr) table_.give_back(carried, ticket_);
  if (result != 0) lost(result);
  return result;
}

void Context::flush() {
  u32 answered = 0;
  if (used_ > sizeof(wire::BatchHead)) post(batch_.data(), used_, 0, nullptr, false, answered);
  used_ = sizeof(wire::BatchHead);
  if (batch_.size() > 4 * kGather) batch_.resize(kGather + 4096);
}

// What was gathered before goes first; then this command alone, with its content beside it.
void Context::send_with_content() {
  const std::vector<u8> command(batch_.begin() + static_cast<std::ptrdiff_t>(start_),
                                batch_.begin() + static_cast<std::ptrdiff_t>(used_));
  const void* const content = std::exchange(content_, nullptr);
  used_ = start_;
  flush();
  WindowPiece piece;
  if (!table_.take(content_bytes_, piece)) return fail(gl::GL_OUT_OF_MEMORY);
  table_.copy(piece.address, content, content_bytes_);
  piece.size = content_bytes_;
  start_ = used_;
  append(command.data(), command.size());
  reinterpret_cast<wire::CommandHead*>(batch_.data() + start_)->flags |= wire::kDataInBulk;
  u32 answered = 0;
  if (used_ > wire::kInlineBytes) {
    // Commands with content have no other arrays (wire/api/opengl/rows.yaml), so they fit a slot.
    fail(gl::GL_OUT_OF_MEMORY);
  } else {
    post(batch_.data(), used_, wire::kBulkIn, &piece, false, answered);
  }
  used_ = sizeof(wire::BatchHead);
  table_.give_back(piece, ticket_);
}

Answer Context::ask(u64 room) {
  if (too_large_ || content_ != nullptr) [[unlikely]] {
    drop();
    return {};
  }
  if (room > kReplyRoom) {
    WindowPiece piece;
    const Answer there = ask_in_window(room, piece);
    answer_.assign(there.rest(), there.rest() + there.left());
    if (piece.address != nullptr) table_.give_back(piece, ticket_);
    return {answer_.data(), answer_.size()};
  }
  if (answer_.size() < kReplyRoom) answer_.resize(kReplyRoom);
  seal();
  u32 answered = 0;
  const i32 result = post(batch_.data(), used_, 0, nullptr, true, answered);
  used_ = sizeof(wire::BatchHead);
  return result == 0 ? Answer(answer_.data(), answered) : Answer();
}

bool Context::ask_into(void* to, u64 bytes) {
  if (bytes <= kReplyRoom) {
    const Answer small = ask(bytes);
    if (small.left() != bytes || bytes == 0) return false;
    std::memcpy(to, small.rest(), bytes);
    return true;
  }
  WindowPiece piece;
  const Answer answer = ask_in_window(bytes, piece, to);
  if (piece.address != nullptr) table_.give_back(piece, ticket_);
  return answer.left() == bytes;
}

Answer Context::ask_in_window(u64 room, WindowPiece& piece, void* copy_to) {
  seal();
  const std::vector<u8> command(batch_.begin() + static_cast<std::ptrdiff_t>(start_),
                                batch_.begin() + static_cast<std::ptrdiff_t>(used_));
  used_ = start_;
  flush();
  start_ = used_;
  append(command.data(), command.size());
  const u64 bytes = std::exchange(used_, sizeof(wire::BatchHead));
  if (bytes > wire::kInlineBytes || room > wire::kMostGlData || !table_.take(room, piece)) {
    fail(gl::GL_OUT_OF_MEMORY);
    return {};
  }
  piece.size = room;
  if (answer_.size() < kReplyRoom) answer_.resize(kReplyRoom);
  u32 answered = 0;
  const i32 result = post(batch_.data(), bytes, wire::kBulkOut, &piece, true, answered, copy_to);
  const u64 size = result == 0 ? Answer(answer_.data(), answered).get<u64>() : 0;
  return {piece.address, size < room ? size : room};
}

void Context::names(wire::GlFunction function, i32 count, u32* out) {
  if (count < 0) return fail(gl::GL_INVALID_VALUE);
  std::vector<u32>& pool = pools_[static_cast<u16>(function)];
  for (i32 i = 0; i < count; ++i) {
    if (pool.empty()) {
      const u64 wanted = std::clamp<u64>(static_cast<u64>(count - i), kNameBlock, 512);
      auto* const a = begin<wire::gl_args::GenBuffers>(function);  // they all look alike
      a->n = static_cast<i32>(wanted);
      a->buffers_room = wanted;
      Answer answer = ask(wanted * sizeof(u32) + 16);
      if (answer.left() == 0) return;
      pool.resize(wanted);
      answer.array(pool.data(), wanted);
      std::ranges::reverse(pool);  // handed out from the end, in the driver's order
    }
    out[i] = pool.back();
    pool.pop_back();
  }
}

u32 Context::take_error() {
  return std::exchange(error_, 0u);
}

void refuse_unsupported(const char* name, const char* reason, std::atomic<bool>& said) {
  if (!said.exchange(true)) log_line("%s is not supported: %s (docs/opengl-coverage.md)", name, reason);
  if (Context* const context = current_context(); context != nullptr) context->fail(gl::GL_INVALID_OPERATION);
}

}  // namespace gpupool::guest
