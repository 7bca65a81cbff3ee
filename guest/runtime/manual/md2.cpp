#include "guest/runtime/manual/md2.hpp"

#include <algorithm>
#include <vector>

namespace gpupool::guest {
namespace {

// The permutation that RFC 1319 (section 3.2) makes from the digits of pi.
constexpr std::array<u8, 256> kSubstitution = {
    41,  46,  67,  201, 162, 216, 124, 1,   61,  54,  84,  161, 236, 240, 6,   19,  98,  167, 5,   243,
    192, 199, 115, 140, 152, 147, 43,  217, 188, 76,  130, 202, 30,  155, 87,  60,  253, 212, 224, 22,
    103, 66,  111, 24,  138, 23,  229, 18,  190, 78,  196, 214, 218, 158, 222, 73,  160, 251, 245, 142,
    187, 47,  238, 122, 169, 104, 121, 145, 21,  178, 7,   63,  148, 194, 16,  137, 11,  34,  95,  33,
    128, 127, 93,  154, 90,  144, 50,  39,  53,  62,  204, 231, 191, 247, 151, 3,   255, 25,  48,  179,
    72,  165, 181, 209, 215, 94,  146, 42,  172, 86,  170, 198, 79,  184, 56,  210, 150, 164, 125, 182,
    118, 252, 107, 226, 156, 116, 4,   241, 69,  157, 112, 89,  100, 113, 135, 32,  134, 91,  207, 101,
    230, 45,  168, 2,   27,  96,  37,  173, 174, 176, 185, 246, 28,  70,  97,  105, 52,  64,  126, 15,
    85,  71,  163, 35,  221, 81,  175, 58,  195, 92,  249, 206, 186, 197, 234, 38,  44,  83,  13,  110,
    133, 40,  132, 9,   211, 223, 205, 244, 65,  129, 77,  82,  106, 220, 55,  200, 108, 193, 171, 250,
    36,  225, 123, 8,   12,  189, 177, 74,  120, 136, 149, 139, 227, 99,  232, 109, 233, 203, 213, 254,
    59,  0,   29,  57,  242, 239, 183, 14,  102, 88,  208, 228, 166, 119, 114, 248, 235, 117, 75,  10,
    49,  68,  80,  180, 143, 237, 31,  26,  219, 153, 141, 51,  159, 17,  131, 20,
};

constexpr size_t kBlock = 16;

class Md2 {
 public:
  void update(std::span<const u8> bytes) {
    for (const u8 byte : bytes) {
      block_[used_++] = byte;
      if (used_ == kBlock) {
        absorb();
        used_ = 0;
      }
    }
  }

  Md2Digest finish() {
    const u8 padding = static_cast<u8>(kBlock - used_);
    const std::vector<u8> pad(padding, padding);
    update(pad);
    block_ = checksum_;
    absorb();
    Md2Digest digest;
    std::copy_n(state_.begin(), kBlock, digest.begin());
    return digest;
  }

 private:
  void absorb() {
    // The checksum's last byte carries over from block to block (the RFC's erratum, as in its reference
    // code).
    u8 last = checksum_[kBlock - 1];
    for (size_t i = 0; i < kBlock; ++i) {
      state_[kBlock + i] = block_[i];
      state_[2 * kBlock + i] = block_[i] ^ state_[i];
      last = checksum_[i] ^= kSubstitution[block_[i] ^ last];
    }
    u32 carry = 0;
    for (u32 round = 0; round < 18; ++round) {
      for (u8& byte : state_) carry = byte ^= kSubstitution[carry];
      carry = (carry + round) & 0xff;
    }
  }

  std::array<u8, 3 * kBlock> state_{};
  Md2Digest checksum_{};
  Md2Digest block_{};
  size_t used_ = 0;
};

}  // namespace

Md2Digest md2(std::span<const u8> message) {
  Md2 hash;
  hash.update(message);
  return hash.finish();
}

Md2Digest hmac_md2(std::span<const u8> key, std::span<const u8> message) {
  Md2Digest padded{};
  if (key.size() > kBlock)
    padded = md2(key);
  else
    std::copy(key.begin(), key.end(), padded.begin());
  Md2Digest inner_key = padded;
  Md2Digest outer_key = padded;
  for (u8& byte : inner_key) byte ^= 0x36;
  for (u8& byte : outer_key) byte ^= 0x5c;
  Md2 inner;
  inner.update(inner_key);
  inner.update(message);
  const Md2Digest first = inner.finish();
  Md2 outer;
  outer.update(outer_key);
  outer.update(first);
  return outer.finish();
}

}  // namespace gpupool::guest
