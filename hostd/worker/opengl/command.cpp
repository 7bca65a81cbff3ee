#include "hostd/worker/opengl/command.hpp"

namespace gpupool::worker {

const char* GlCommand::string(u64 count, i64 length) {
  if (count == wire::kNullArray) return nullptr;
  if (count > wire::kMostGlBatch || (length >= 0 && static_cast<u64>(length) != count))
    throw wire::ProtocolError("a string of another length than the command's");
  const u8* const text = take((count + 7) / 8 * 8);
  return strings_.emplace_back(reinterpret_cast<const char*>(text), count).c_str();
}

const char* const* GlCommand::strings(u64 count, u64 expected) {
  if (count == wire::kNullArray) return nullptr;
  // Each takes at least the 8 bytes of its length.
  if (count != expected || count > bytes_.size() / 8) throw wire::ProtocolError("too many strings");
  std::vector<const char*>& list = lists_.emplace_back();
  list.reserve(count + 1);
  for (u64 i = 0; i < count; ++i) {
    u64 length = 0;
    std::memcpy(&length, take(sizeof length), sizeof length);
    if (length > bytes_.size()) throw wire::ProtocolError("a string that is longer than its command");
    list.push_back(string(length));
  }
  list.push_back(nullptr);
  return list.data();
}

// The client reads arrays at multiples of 8 bytes.
void GlCommand::align() {
  must_answer();
  while (out_->bytes().size() % 8 != 0) out_->put(u8{0});
}

void GlCommand::put_bytes(const void* data, u64 bytes) {
  must_answer();
  out_->put_span(data, bytes);
}

}  // namespace gpupool::worker
