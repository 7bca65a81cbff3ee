#include "hostd/compression/zstd_entropy.hpp"

#include <bit>
#include <cstring>

namespace gpupool::compression::zstd {
namespace {

u32 highest_bit(u32 value) {
  return 31 - static_cast<u32>(std::countl_zero(value));
}

// Bits in order, for FSE descriptions.
class ForwardBits {
 public:
  explicit ForwardBits(std::span<const u8> data) : data_(data) {}

  u32 peek(u32 count) const {
    u32 value = 0;
    for (u32 i = 0; i < count; ++i)
      if (const size_t bit = at_ + i; bit / 8 < data_.size())
        value |= static_cast<u32>(data_[bit / 8] >> (bit % 8) & 1) << i;
    return value;
  }
  void skip(u32 count) {
    at_ += count;
    require(at_ <= data_.size() * 8);
  }
  u32 read(u32 count) {
    const u32 value = peek(count);
    skip(count);
    return value;
  }
  size_t bytes_used() const { return (at_ + 7) / 8; }

 private:
  std::span<const u8> data_;
  size_t at_ = 0;
};

constexpr u32 kMaxHuffmanLog = 11;
constexpr u32 kMaxWeightLog = 6;

std::vector<u8> read_direct_weights(std::span<const u8> data, u32 count) {
  require((count + 1) / 2 <= data.size());
  std::vector<u8> weights(count);
  for (u32 i = 0; i < count; ++i)
    weights[i] = static_cast<u8>(i % 2 == 0 ? data[i / 2] >> 4 : data[i / 2] & 15);
  return weights;
}

// Two states take turns until the bits run out.
std::vector<u8> read_fse_weights(std::span<const u8> data) {
  size_t used = 0;
  const FseTable table = read_fse_table(data, kMaxWeightLog, 256, used);
  BackwardBits bits(data.subspan(used));
  u64 states[2] = {bits.read(table.log), bits.read(table.log)};
  std::vector<u8> weights;
  for (u32 turn = 0;; turn ^= 1) {
    require(weights.size() < 255);
    const FseEntry& entry = table.entries[states[turn]];
    weights.push_back(entry.symbol);
    const i64 left = bits.left() - entry.bits;
    if (left < 0) {
      weights.push_back(table.entries[states[turn ^ 1]].symbol);
      return weights;
    }
    states[turn] = entry.base + bits.read(entry.bits);
  }
}

// The last weight is what is missing to a power of two.
void add_last_weight(std::vector<u8>& weights, u32& log) {
  u32 sum = 0;
  for (const u8 weight : weights) {
    require(weight <= kMaxHuffmanLog + 1);
    if (weight != 0) sum += 1u << (weight - 1);
  }
  require(sum != 0);
  log = highest_bit(sum) + 1;
  require(log <= kMaxHuffmanLog);
  const u32 missing = (1u << log) - sum;
  require(std::has_single_bit(missing));
  weights.push_back(static_cast<u8>(highest_bit(missing) + 1));
}

}  // namespace

BackwardBits::BackwardBits(std::span<const u8> data) : data_(data) {
  require(!data.empty() && data.back() != 0);
  left_ = static_cast<i64>(data.size() - 1) * 8 + highest_bit(data.back());
}

u64 BackwardBits::at(i64 position, u32 count) const {
  u64 value = 0;
  for (u32 i = 0; i < count;) {
    const i64 bit = position + i;
    if (bit < 0) {
      ++i;
      continue;
    }
    const u32 offset = static_cast<u32>(bit % 8);
    const u32 take = count - i < 8 - offset ? count - i : 8 - offset;
    const u64 part = static_cast<u64>(data_[static_cast<size_t>(bit / 8)] >> offset) & ((1u << take) - 1);
    value |= part << i;
    i += take;
  }
  return value;
}

FseTable make_fse_table(std::span<const std::int16_t> probabilities, u32 log) {
  const u32 size = 1u << log;
  FseTable table;
  table.log = log;
  table.entries.resize(size);
  std::vector<u32> next(probabilities.size());
  u32 high = size;
  for (size_t symbol = 0; symbol < probabilities.size(); ++symbol) {
    next[symbol] = probabilities[symbol] < 0 ? 1 : static_cast<u32>(probabilities[symbol]);
    if (probabilities[symbol] == -1) table.entries[--high].symbol = static_cast<u8>(symbol);
  }
  const u32 step = (size >> 1) + (size >> 3) + 3;
  u32 position = 0;
  for (size_t symbol = 0; symbol < probabilities.size(); ++symbol) {
    for (i32 i = 0; i < probabilities[symbol]; ++i) {
      table.entries[position].symbol = static_cast<u8>(symbol);
      do position = (position + step) & (size - 1);
      while (position >= high);
    }
  }
  require(position == 0);
  for (FseEntry& entry : table.entries) {
    const u32 state = next[entry.symbol]++;
    entry.bits = static_cast<u8>(log - highest_bit(state));
    entry.base = static_cast<u16>((state << entry.bits) - size);
  }
  return table;
}

FseTable read_fse_table(std::span<const u8> data, u32 max_log, u32 max_symbols, size_t& used) {
  ForwardBits bits(data);
  const u32 log = bits.read(4) + 5;
  require(log <= max_log);
  std::vector<std::int16_t> probabilities;
  i32 remaining = 1 << log;
  while (remaining > 0) {
    require(probabilities.size() < max_symbols);
    // A value below the threshold needs one bit less.
    const u32 width = highest_bit(static_cast<u32>(remaining + 1)) + 1;
    const u32 low_mask = (1u << (width - 1)) - 1;
    const u32 threshold = (1u << width) - 1 - static_cast<u32>(remaining + 1);
    u32 value = bits.peek(width);
    if ((value & low_mask) < threshold) {
      value &= low_mask;
      bits.skip(width - 1);
    } else {
      if (value > low_mask) value -= threshold;
      bits.skip(width);
    }
    const i32 probability = static_cast<i32>(value) - 1;
    remaining -= probability < 0 ? -probability : probability;
    probabilities.push_back(static_cast<std::int16_t>(probability));
    if (probability != 0) continue;
    u32 zeros = 3;
    while (zeros == 3) {
      zeros = bits.read(2);
      probabilities.insert(probabilities.end(), zeros, 0);
      require(probabilities.size() <= max_symbols);
    }
  }
  require(remaining == 0);
  used = bits.bytes_used();
  require(used <= data.size());
  return make_fse_table(probabilities, log);
}

FseTable single_symbol_table(u8 symbol) {
  return FseTable{0, {FseEntry{symbol, 0, 0}}};
}

HuffmanTable read_huffman_table(std::span<const u8> data, size_t& used) {
  require(!data.empty());
  const u32 header = data[0];
  std::vector<u8> weights;
  if (header >= 128) {
    const u32 count = header - 127;
    used = 1 + (count + 1) / 2;
    weights = read_direct_weights(data.subspan(1), count);
  } else {
    used = 1 + header;
    require(used <= data.size());
    weights = read_fse_weights(data.subspan(1, header));
  }
  HuffmanTable table;
  add_last_weight(weights, table.log);
  table.entries.resize(1u << table.log);
  size_t at = 0;
  for (u32 weight = 1; weight <= table.log; ++weight) {
    for (size_t symbol = 0; symbol < weights.size(); ++symbol) {
      if (weights[symbol] != weight) continue;
      const size_t span = 1u << (weight - 1);
      require(at + span <= table.entries.size());
      for (size_t i = 0; i < span; ++i)
        table.entries[at++] = {static_cast<u8>(symbol), static_cast<u8>(table.log + 1 - weight)};
    }
  }
  require(at == table.entries.size());
  return table;
}

void decode_huffman(const HuffmanTable& table, std::span<const u8> stream, std::span<u8> out) {
  BackwardBits bits(stream);
  for (u8& byte : out) {
    const HuffmanEntry& entry = table.entries[bits.peek(table.log)];
    byte = entry.symbol;
    bits.skip(entry.bits);
  }
  require(bits.left() == 0);
}

}  // namespace gpupool::compression::zstd
