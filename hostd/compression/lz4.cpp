#include "hostd/compression/compression.hpp"

namespace gpupool::compression {
namespace {

// A length of 15 in the token goes on in bytes until one is not 255.
bool extend_length(std::span<const u8> data, size_t& at, u64& length) {
  if (length != 15) return true;
  for (;;) {
    if (at >= data.size()) return false;
    const u8 byte = data[at++];
    length += byte;
    if (byte != 255) return true;
  }
}

}  // namespace

bool decompress_lz4(std::span<const u8> data, u64 limit, std::string& out) {
  const size_t start = out.size();
  size_t at = 0;
  while (at < data.size()) {
    const u8 token = data[at++];
    u64 literals = token >> 4;
    if (!extend_length(data, at, literals) || literals > data.size() - at) return false;
    if (literals > limit - (out.size() - start)) return false;
    out.append(reinterpret_cast<const char*>(data.data()) + at, literals);
    at += literals;
    if (at == data.size()) return true;  // the last sequence has no match
    if (data.size() - at < 2) return false;
    const u64 distance = data[at] | static_cast<u64>(data[at + 1]) << 8;
    at += 2;
    u64 length = token & 15;
    if (!extend_length(data, at, length)) return false;
    length += 4;
    if (distance == 0 || distance > out.size() - start || length > limit - (out.size() - start)) return false;
    for (u64 i = 0; i < length; ++i) out.push_back(out[out.size() - distance]);  // may overlap itself
  }
  return true;
}

}  // namespace gpupool::compression
