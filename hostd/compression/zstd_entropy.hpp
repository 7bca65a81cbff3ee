// The entropy coders of Zstandard (RFC 8878, section 4): bit streams read backwards, FSE and Huffman tables.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::compression::zstd {

// Malformed data. Caught by decompress_zstd().
struct Malformed {};

inline void require(bool condition) {
  if (!condition) throw Malformed{};
}

// Bits from the end of the data to its start; the highest set bit of the last byte marks the end.
class BackwardBits {
 public:
  explicit BackwardBits(std::span<const u8> data);
  // `count` bits, the most significant first read; zeros beyond the start.
  u64 read(u32 count) {
    left_ -= count;
    return at(left_, count);
  }
  [[nodiscard]] u64 peek(u32 count) const { return at(left_ - count, count); }
  void skip(u32 count) { left_ -= count; }
  [[nodiscard]] i64 left() const { return left_; }  // negative: more was read than there is

 private:
  [[nodiscard]] u64 at(i64 position, u32 count) const;

  std::span<const u8> data_;
  i64 left_ = 0;
};

struct FseEntry {
  u8 symbol = 0;
  u8 bits = 0;
  u16 base = 0;
};

struct FseTable {
  u32 log = 0;
  std::vector<FseEntry> entries;
  [[nodiscard]] bool empty() const { return entries.empty(); }
};

// From probabilities (-1: less than one).
FseTable make_fse_table(std::span<const std::int16_t> probabilities, u32 log);
// From a description at the start of `data`; `used` comes back.
FseTable read_fse_table(std::span<const u8> data, u32 max_log, u32 max_symbols, size_t& used);
FseTable single_symbol_table(u8 symbol);

struct HuffmanEntry {
  u8 symbol = 0;
  u8 bits = 0;
};

struct HuffmanTable {
  u32 log = 0;
  std::vector<HuffmanEntry> entries;
  [[nodiscard]] bool empty() const { return entries.empty(); }
};

HuffmanTable read_huffman_table(std::span<const u8> data, size_t& used);
// Decodes exactly out.size() symbols, which must use up the stream.
void decode_huffman(const HuffmanTable& table, std::span<const u8> stream, std::span<u8> out);

}  // namespace gpupool::compression::zstd
