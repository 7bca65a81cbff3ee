// Zstandard decompression as RFC 8878 describes it; no dictionaries, checksums are passed over (the PTX
// parser would not survive damaged text unnoticed).
#include <array>
#include <cstring>

#include "hostd/compression/compression.hpp"
#include "hostd/compression/zstd_entropy.hpp"

namespace gpupool::compression {
namespace zstd {
namespace {

constexpr u32 kMagic = 0xFD2F'B528;
constexpr u32 kSkippableMagic = 0x184D'2A50;
constexpr u32 kMaxBlockBytes = 128 * 1024;

struct LengthCode {
  u32 base;
  u8 bits;
};

constexpr std::array<LengthCode, 36> kLiteralLengths{
    {{0, 0},     {1, 0},      {2, 0},      {3, 0},     {4, 0},   {5, 0},     {6, 0},     {7, 0},
     {8, 0},     {9, 0},      {10, 0},     {11, 0},    {12, 0},  {13, 0},    {14, 0},    {15, 0},
     {16, 1},    {18, 1},     {20, 1},     {22, 1},    {24, 2},  {28, 2},    {32, 3},    {40, 3},
     {48, 4},    {64, 6},     {128, 7},    {256, 8},   {512, 9}, {1024, 10}, {2048, 11}, {4096, 12},
     {8192, 13}, {16384, 14}, {32768, 15}, {65536, 16}}};

LengthCode match_length(u32 code) {
  constexpr std::array<LengthCode, 21> upper{
      {{35, 1},    {37, 1},    {39, 1},    {41, 1},    {43, 2},     {47, 2},     {51, 3},
       {59, 3},    {67, 4},    {83, 4},    {99, 5},    {131, 7},    {259, 8},    {515, 9},
       {1027, 10}, {2051, 11}, {4099, 12}, {8195, 13}, {16387, 14}, {32771, 15}, {65539, 16}}};
  require(code < 32 + upper.size());
  return code < 32 ? LengthCode{code + 3, 0} : upper[code - 32];
}

constexpr std::array<std::int16_t, 36> kLiteralDefaults{4, 3, 2, 2, 2, 2, 2, 2, 2,  2,  2,  2,
                                                        2, 1, 1, 1, 2, 2, 2, 2, 2,  2,  2,  2,
                                                        2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1};
constexpr std::array<std::int16_t, 53> kMatchDefaults{
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,  1,  1,  1,  1,  1,  1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1};
constexpr std::array<std::int16_t, 29> kOffsetDefaults{1, 1, 1, 1, 1, 1, 2, 2, 2, 1,  1,  1,  1,  1, 1,
                                                       1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1};

// Bytes in order, checked.
class Input {
 public:
  explicit Input(std::span<const u8> data) : data_(data) {}
  u64 number(u32 bytes) {
    const std::span<const u8> part = take(bytes);
    u64 value = 0;
    for (u32 i = 0; i < bytes; ++i) value |= static_cast<u64>(part[i]) << (8 * i);
    return value;
  }
  std::span<const u8> take(u64 bytes) {
    require(bytes <= data_.size());
    const std::span<const u8> part = data_.first(bytes);
    data_ = data_.subspan(bytes);
    return part;
  }
  std::span<const u8> rest() const { return data_; }
  bool empty() const { return data_.empty(); }

 private:
  std::span<const u8> data_;
};

class Frame {
 public:
  Frame(std::string& out, size_t limit_size) : out_(out), start_(out.size()), limit_size_(limit_size) {}

  void decode(Input& input) {
    const bool checksum = header(input);
    for (bool last = false; !last;) {
      const u64 block = input.number(3);
      last = (block & 1) != 0;
      const u64 size = block >> 3;
      switch (block >> 1 & 3) {
        case 0:
          append(input.take(size));
          break;
        case 1: {
          const u8 byte = static_cast<u8>(input.number(1));
          room(size);
          out_.append(size, static_cast<char>(byte));
          break;
        }
        case 2:
          compressed_block(input.take(size));
          break;
        default:
          throw Malformed{};
      }
    }
    if (checksum) input.take(4);
  }

 private:
  void room(u64 bytes) const { require(out_.size() <= limit_size_ && bytes <= limit_size_ - out_.size()); }

  void append(std::span<const u8> bytes) {
    room(bytes.size());
    out_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  // Returns whether a checksum follows the blocks.
  static bool header(Input& input) {
    const u64 descriptor = input.number(1);
    const bool single_segment = (descriptor & 0x20) != 0;
    require((descriptor & 0x08) == 0);
    if (!single_segment) input.take(1);
    require((descriptor & 3) == 0);  // a dictionary
    constexpr u32 sizes[4] = {0, 2, 4, 8};
    const u32 size_bytes = sizes[descriptor >> 6];
    input.take(size_bytes == 0 && single_segment ? 1 : size_bytes);
    return (descriptor & 4) != 0;
  }

  void compressed_block(std::span<const u8> block) {
    Input input(block);
    read_literals(input);
    read_sequences(input);
  }

  void read_literals(Input& input) {
    require(!input.empty());
    const u32 first = input.rest()[0];
    const u32 type = first & 3;
    const u32 format = first >> 2 & 3;
    if (type < 2) {
      const u32 header_bytes = format == 1 ? 2 : format == 3 ? 3 : 1;
      const u64 size = input.number(header_bytes) >> (header_bytes == 1 ? 3 : 4);
      require(size <= kMaxBlockBytes);
      if (type == 1) {
        literals_.assign(size, static_cast<u8>(input.number(1)));
      } else {
        const std::span<const u8> raw = input.take(size);
        literals_.assign(raw.begin(), raw.end());
      }
      return;
    }
    const u32 header_bytes = format < 2 ? 3 : format + 2;
    const u32 width = format < 2 ? 10 : format == 2 ? 14 : 18;
    const u64 header = input.number(header_bytes);
    const u64 size = header >> 4 & ((1u << width) - 1);
    const u64 compressed = header >> (4 + width) & ((1u << width) - 1);
    require(size <= kMaxBlockBytes);
    std::span<const u8> data = input.take(compressed);
    if (type == 2) {
      size_t used = 0;
      huffman_ = read_huffman_table(data, used);
      data = data.subspan(used);
    }
    require(!huffman_.empty());
    literals_.resize(size);
    if (format == 0)
      decode_huffman(huffman_, data, literals_);
    else
      decode_four_streams(data);
  }

  void decode_four_streams(std::span<const u8> data) {
    Input input(data);
    const u64 sizes[3] = {input.number(2), input.number(2), input.number(2)};
    const size_t part = (literals_.size() + 3) / 4;
    require(part * 3 <= literals_.size());
    const std::span<u8> out(literals_);
    for (size_t i = 0; i < 3; ++i)
      decode_huffman(huffman_, input.take(sizes[i]), out.subspan(i * part, part));
    decode_huffman(huffman_, input.rest(), out.subspan(3 * part));
  }

  static void read_table(Input& input, u32 mode, FseTable& table, std::span<const std::int16_t> defaults,
                         u32 default_log, u32 max_log) {
    switch (mode) {
      case 0:
        table = make_fse_table(defaults, default_log);
        break;
      case 1:
        table = single_symbol_table(static_cast<u8>(input.number(1)));
        break;
      case 2: {
        size_t used = 0;
        table = read_fse_table(input.rest(), max_log, 64, used);
        input.take(used);
        break;
      }
      default:
        require(!table.empty());
    }
  }

  void read_sequences(Input& input) {
    u64 count = input.number(1);
    if (count == 255)
      count = input.number(2) + 0x7f00;
    else if (count >= 128)
      count = ((count - 128) << 8) + input.number(1);
    if (count == 0) {
      require(input.empty());
      return append(literals_);
    }
    const u64 modes = input.number(1);
    require((modes & 3) == 0);
    read_table(input, static_cast<u32>(modes >> 6), literal_table_, kLiteralDefaults, 6, 9);
    read_table(input, static_cast<u32>(modes >> 4 & 3), offset_table_, kOffsetDefaults, 5, 8);
    read_table(input, static_cast<u32>(modes >> 2 & 3), match_table_, kMatchDefaults, 6, 9);
    BackwardBits bits(input.rest());
    u64 literal_state = bits.read(literal_table_.log);
    u64 offset_state = bits.read(offset_table_.log);
    u64 match_state = bits.read(match_table_.log);
    size_t literal_at = 0;
    for (u64 i = 0; i < count; ++i) {
      const FseEntry& literal = literal_table_.entries[literal_state];
      const FseEntry& offset = offset_table_.entries[offset_state];
      const FseEntry& match = match_table_.entries[match_state];
      require(offset.symbol < 32 && literal.symbol < kLiteralLengths.size());
      const u64 offset_value = (1ull << offset.symbol) + bits.read(offset.symbol);
      const LengthCode match_code = match_length(match.symbol);
      const u64 match_bytes = match_code.base + bits.read(match_code.bits);
      const LengthCode literal_code = kLiteralLengths[literal.symbol];
      const u64 literal_bytes = literal_code.base + bits.read(literal_code.bits);
      copy_sequence(literal_at, literal_bytes, offset_value, match_bytes);
      if (i + 1 == count) break;
      literal_state = literal.base + bits.read(literal.bits);
      match_state = match.base + bits.read(match.bits);
      offset_state = offset.base + bits.read(offset.bits);
    }
    require(bits.left() == 0);
    append(std::span<const u8>(literals_).subspan(literal_at));
  }

  u64 resolve_offset(u64 value, u64 literal_bytes) {
    if (value > 3) {
      offsets_ = {value - 3, offsets_[0], offsets_[1]};
      return offsets_[0];
    }
    const u64 index = value - 1 + (literal_bytes == 0 ? 1 : 0);
    const u64 offset = index < 3 ? offsets_[index] : offsets_[0] - 1;
    if (index >= 2)
      offsets_ = {offset, offsets_[0], offsets_[1]};
    else if (index == 1)
      offsets_ = {offset, offsets_[0], offsets_[2]};
    return offset;
  }

  void copy_sequence(size_t& literal_at, u64 literal_bytes, u64 offset_value, u64 match_bytes) {
    require(literal_bytes <= literals_.size() - literal_at);
    append(std::span<const u8>(literals_).subspan(literal_at, literal_bytes));
    literal_at += literal_bytes;
    const u64 offset = resolve_offset(offset_value, literal_bytes);
    require(offset != 0 && offset <= out_.size() - start_);
    room(match_bytes);
    for (u64 i = 0; i < match_bytes; ++i) out_.push_back(out_[out_.size() - offset]);
  }

  std::string& out_;
  size_t start_;
  size_t limit_size_;
  std::vector<u8> literals_;
  HuffmanTable huffman_;
  FseTable literal_table_;
  FseTable offset_table_;
  FseTable match_table_;
  std::array<u64, 3> offsets_{1, 4, 8};
};

}  // namespace
}  // namespace zstd

bool decompress_zstd(std::span<const u8> data, u64 limit, std::string& out) {
  const size_t limit_size = out.size() + limit;
  try {
    zstd::Input input(data);
    while (!input.empty()) {
      const u64 magic = input.number(4);
      if ((magic & 0xffff'fff0u) == zstd::kSkippableMagic) {
        input.take(input.number(4));
        continue;
      }
      zstd::require(magic == zstd::kMagic);
      zstd::Frame(out, limit_size).decode(input);
    }
  } catch (const zstd::Malformed&) {
    return false;
  }
  return true;
}

}  // namespace gpupool::compression
