// The two compressions that fatbin entries use.
#pragma once

#include <span>
#include <string>

#include "wire/cpp/types.hpp"

namespace gpupool::compression {

// Both append at most `limit` bytes to `out` and return false when the data are malformed or hold more.
// A raw LZ4 block (LZ4 block format description, lz4.org).
bool decompress_lz4(std::span<const u8> data, u64 limit, std::string& out);
// Zstandard frames (RFC 8878).
bool decompress_zstd(std::span<const u8> data, u64 limit, std::string& out);

}  // namespace gpupool::compression
