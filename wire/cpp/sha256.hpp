// SHA-256 (FIPS 180-4), which names a code image by its content. Both ends need it, neither can count on a
// library that has it, and processors with instructions for it do 1.8 GB/s.
#pragma once

#include <immintrin.h>

#include <array>
#include <bit>
#include <cstring>
#include <span>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

using Digest = std::array<u8, 32>;

namespace detail {

// FIPS 180-4, section 4.2.2.
inline constexpr u32 kSha256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
// Section 5.3.3.
inline constexpr std::array<u32, 8> kSha256Start = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

// Section 6.2.2.
inline void sha256_plain(std::array<u32, 8>& state, const u8* data, u64 blocks) {
  for (; blocks != 0; --blocks, data += 64) {
    u32 words[64];
    for (u32 i = 0; i < 16; ++i) {
      u32 word = 0;
      std::memcpy(&word, data + u64{i} * 4, 4);
      words[i] = __builtin_bswap32(word);
    }
    for (u32 i = 16; i < 64; ++i) {
      const u32 a = words[i - 15];
      const u32 b = words[i - 2];
      words[i] = words[i - 16] + words[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) +
                 (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (u32 i = 0; i < 64; ++i) {
      const u32 first = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) +
                        kSha256[i] + words[i];
      const u32 second =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::array<u32, 8> worked = {a, b, c, d, e, f, g, h};
    for (u32 i = 0; i < 8; ++i) state[i] += worked[i];
  }
}

// The same with the processor's instructions, which take the state as ABEF and CDGH and do four rounds from a
// sum of four words and constants (Intel SDM, volume 2B, SHA256RNDS2, SHA256MSG1, SHA256MSG2).
__attribute__((target("sha,sse4.1,ssse3"))) inline void sha256_fast(std::array<u32, 8>& state, const u8* data,
                                                                    u64 blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d'0e0f'0809'0a0b, 0x0405'0607'0001'0203);
  auto [a, b, c, d, e, f, g, h] = state;
  __m128i abef =
      _mm_setr_epi32(static_cast<int>(f), static_cast<int>(e), static_cast<int>(b), static_cast<int>(a));
  __m128i cdgh =
      _mm_setr_epi32(static_cast<int>(h), static_cast<int>(g), static_cast<int>(d), static_cast<int>(c));
  for (; blocks != 0; --blocks, data += 64) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    __m128i words[4];
    for (int i = 0; i < 4; ++i)
      words[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), swap);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i >= 4) {
        // The next four words of the schedule, in the place of the oldest four.
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(words[i % 4], words[(i + 1) % 4]),
                                          _mm_alignr_epi8(words[(i + 3) % 4], words[(i + 2) % 4], 4));
        words[i % 4] = _mm_sha256msg2_epu32(sum, words[(i + 3) % 4]);
      }
      const __m128i constants = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kSha256) + i);
      const __m128i sums = _mm_add_epi32(words[i % 4], constants);
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sums);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sums, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  alignas(16) u32 low[4];
  alignas(16) u32 high[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(low), abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(high), cdgh);
  state = {low[3], low[2], high[3], high[2], low[1], low[0], high[1], high[0]};
}

// CPUID leaf 7, EBX bit 29 (Intel SDM, volume 2A); everything that runs this has SSE4.1 (x86-64-v2).
inline bool has_sha_instructions() {
  u32 a = 7;
  u32 b = 0;
  u32 c = 0;
  u32 d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (b >> 29 & 1) != 0;
}

}  // namespace detail

inline Digest sha256(std::span<const u8> bytes, bool fast = detail::has_sha_instructions()) {
  const auto work = fast ? detail::sha256_fast : detail::sha256_plain;
  std::array<u32, 8> state = detail::kSha256Start;
  const u64 whole = bytes.size() / 64;
  work(state, bytes.data(), whole);
  // Section 5.1.1: a one, zeroes, and the length in bits.
  u8 tail[128] = {};
  const u64 rest = bytes.size() - whole * 64;
  if (rest != 0) std::memcpy(tail, bytes.data() + whole * 64, rest);
  tail[rest] = 0x80;
  const u64 tail_blocks = rest < 56 ? 1 : 2;
  const u64 bits = __builtin_bswap64(bytes.size() * 8);
  std::memcpy(tail + tail_blocks * 64 - 8, &bits, 8);
  work(state, tail, tail_blocks);
  Digest digest;
  for (u64 i = 0; i < 8; ++i) {
    const u32 word = __builtin_bswap32(state[i]);
    std::memcpy(digest.data() + i * 4, &word, 4);
  }
  return digest;
}

}  // namespace gpupool::wire
