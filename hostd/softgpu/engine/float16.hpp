// 16-bit floating point on a CPU that may have no instructions for it. Values are their bits (u16).
// Conversions to 16 bits round once, in the given direction; arithmetic is done in float or double so that it
// too rounds once.
#pragma once

#include <bit>
#include <cmath>

#include "wire/cpp/types.hpp"

namespace gpupool::softgpu::engine {

enum class Rounding : u8 { nearest, zero, down, up, away };  // away: nearest, ties away from zero (.rna)

// Rounds a double to a binary format with `kMantissa` stored mantissa bits and `kExponent` exponent bits,
// IEEE style with subnormals, infinities and NaN. The result is right-aligned.
template <u32 kMantissa, u32 kExponent>
inline u32 small_float_from_double(double value, Rounding rounding) {
  constexpr i32 bias = (1 << (kExponent - 1)) - 1;
  constexpr u32 infinity = ((1u << kExponent) - 1) << kMantissa;
  const u64 bits = std::bit_cast<u64>(value);
  const u32 sign = static_cast<u32>(bits >> 63) << (kMantissa + kExponent);
  const u64 magnitude = bits & ~(1ull << 63);
  if (magnitude > 0x7ff0'0000'0000'0000ull)
    return infinity | ((1u << kMantissa) - 1);  // NaN, canonical: 0x7fff
  if (magnitude == 0x7ff0'0000'0000'0000ull) return sign | infinity;
  if (magnitude == 0) return sign;
  i32 exponent = static_cast<i32>(magnitude >> 52) - 1023;
  u64 mantissa = magnitude & 0xf'ffff'ffff'ffffull;
  if (exponent == -1023)
    exponent = -1022;  // a double subnormal: far below, the hidden bit is absent
  else
    mantissa |= 1ull << 52;
  i32 shift = 52 - static_cast<i32>(kMantissa);
  i32 target = exponent + bias;
  if (target < 1) {  // subnormal result
    shift += 1 - target;
    target = 0;
  }
  if (shift > 63) shift = 63;
  const u64 kept = mantissa >> shift;
  const u64 rest = mantissa & ((1ull << shift) - 1);
  const u64 half = 1ull << (shift - 1);
  bool increment = false;
  switch (rounding) {
    case Rounding::nearest:
      increment = rest > half || (rest == half && (kept & 1) != 0);
      break;
    case Rounding::away:
      increment = rest >= half;
      break;
    case Rounding::zero:
      break;
    case Rounding::down:
      increment = sign != 0 && rest != 0;
      break;
    case Rounding::up:
      increment = sign == 0 && rest != 0;
      break;
  }
  u64 result = kept + (increment ? 1 : 0);
  // The hidden bit adds one to the exponent; a carry out of the mantissa does the right thing by itself.
  if (target > 0) result += static_cast<u64>(target - 1) << kMantissa;
  if (result >= infinity) {
    const bool to_infinity = rounding == Rounding::nearest || rounding == Rounding::away ||
                             (rounding == Rounding::up && sign == 0) ||
                             (rounding == Rounding::down && sign != 0);
    return sign | (to_infinity ? infinity : infinity - 1);
  }
  return sign | static_cast<u32>(result);
}

inline u16 half_from_double(double value, Rounding rounding = Rounding::nearest) {
  return static_cast<u16>(small_float_from_double<10, 5>(value, rounding));
}

inline u16 bfloat_from_double(double value, Rounding rounding = Rounding::nearest) {
  return static_cast<u16>(small_float_from_double<7, 8>(value, rounding));
}

inline float float_from_half(u16 bits) {
  const u32 sign = static_cast<u32>(bits & 0x8000u) << 16;
  const u32 rest = bits & 0x7fffu;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f80'0000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x0400) return std::bit_cast<float>(sign | ((rest << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(rest) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<u32>(subnormal));
}

inline float float_from_bfloat(u16 bits) {
  return std::bit_cast<float>(static_cast<u32>(bits) << 16);
}

// a * b + c for values whose product is exact in double: the sum is rounded to odd, so that rounding it again
// to fewer bits gives the result of one rounding (Boldo and Melquiond, "Emulation of FMA and correctly
// rounded sums").
inline double fused_to_odd(double a, double b, double c) {
  const double product = a * b;
  const double sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (c - part);
  const u64 bits = std::bit_cast<u64>(sum);
  if (error == 0 || (bits & 1) != 0) return sum;
  const bool outward = (error > 0) == (sum > 0);
  return std::bit_cast<double>(outward ? bits + 1 : bits - 1);
}

}  // namespace gpupool::softgpu::engine
