#include "hostd/softgpu/engine/convert.hpp"

#include <limits>

#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

u64 low_bits(u32 bytes) {
  return bytes >= 8 ? ~0ull : (1ull << (bytes * 8)) - 1;
}

i64 sign_extended(u64 bits, u32 bytes) {
  const u32 shift = 64 - bytes * 8;
  return static_cast<i64>(bits << shift) >> shift;
}

// The bounds of an integer type, as a signed and an unsigned limit.
i64 lowest(Type type) {
  return is_signed(type) ? -static_cast<i64>(low_bits(type_bytes(type)) >> 1) - 1 : 0;
}
u64 highest(Type type) {
  return is_signed(type) ? low_bits(type_bytes(type)) >> 1 : low_bits(type_bytes(type));
}

u64 integer_to_integer(u64 bits, const Conversion& c) {
  const u32 from_bytes = type_bytes(c.from);
  u64 value =
      is_signed(c.from) ? static_cast<u64>(sign_extended(bits, from_bytes)) : bits & low_bits(from_bytes);
  if (c.saturate) {
    const bool negative = is_signed(c.from) && static_cast<i64>(value) < 0;
    if (negative && static_cast<i64>(value) < lowest(c.to))
      value = static_cast<u64>(lowest(c.to));
    else if (!negative && value > highest(c.to))
      value = highest(c.to);
  }
  const u32 bytes = type_bytes(c.to);
  return is_signed(c.to) ? static_cast<u64>(sign_extended(value, bytes)) : value & low_bits(bytes);
}

// An integer as a double that rounds like the integer: beyond 53 bits the last bit collects what falls off.
double exact_or_sticky(u64 magnitude, bool negative) {
  i32 scale = 0;
  while (magnitude >> 53 != 0) {
    magnitude = magnitude >> 1 | (magnitude & 1);
    ++scale;
  }
  const double value = std::ldexp(static_cast<double>(magnitude), scale);
  return negative ? -value : value;
}

u64 integer_to_float(u64 bits, const Conversion& c) {
  const u32 from_bytes = type_bytes(c.from);
  const i64 value =
      is_signed(c.from) ? sign_extended(bits, from_bytes) : static_cast<i64>(bits & low_bits(from_bytes));
  const bool huge = !is_signed(c.from) && value < 0;  // u64 with the top bit
  // Halving with a sticky bit leaves 63 bits, more than either result keeps.
  const i64 halved = static_cast<i64>(static_cast<u64>(value) >> 1 | (static_cast<u64>(value) & 1));
  if (c.to == Type::f64) {
    const double result = huge ? rounded_to_double(halved) * 2 : rounded_to_double(value);
    return std::bit_cast<u64>(c.saturate ? saturate(result) : result);
  }
  if (c.to == Type::f32) {
    const float result = huge ? rounded_to_float(halved) * 2 : rounded_to_float(value);
    return std::bit_cast<u32>(c.saturate ? saturate(result) : result);
  }
  const bool negative = is_signed(c.from) && value < 0;
  return encode_float(
      exact_or_sticky(negative ? 0 - static_cast<u64>(value) : static_cast<u64>(value), negative), c);
}

double to_integral(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
    default: {
      // Ties to even, whatever the processor's direction is now.
      const double floor = std::floor(value);
      const double rest = value - floor;
      if (rest < 0.5) return std::copysign(floor, value);
      if (rest > 0.5) return std::copysign(floor + 1, value);
      return std::copysign(std::fmod(floor, 2) == 0 ? floor : floor + 1, value);
    }
  }
}

// Out of range gives the nearest bound; NaN gives 0, or only the top bit where f64 or 64-bit integers take
// part.
u64 float_to_integer(double value, const Conversion& c) {
  const u32 bytes = type_bytes(c.to);
  if (std::isnan(value)) {
    if (c.from != Type::f64 && bytes < 8) return 0;
    const u64 top = 1ull << (bytes * 8 - 1);
    return is_signed(c.to) ? static_cast<u64>(sign_extended(top, bytes)) : top;
  }
  const double integral = to_integral(value, c.rounding);
  if (is_signed(c.to)) {
    const double bound = std::ldexp(1.0, static_cast<int>(bytes * 8 - 1));
    if (integral >= bound) return highest(c.to);
    if (integral < -bound) return static_cast<u64>(lowest(c.to));
    return static_cast<u64>(static_cast<i64>(integral));
  }
  if (integral <= 0) return 0;
  if (integral >= std::ldexp(1.0, static_cast<int>(bytes * 8))) return highest(c.to);
  return static_cast<u64>(integral);
}

u64 float_to_float(u64 bits, double value, const Conversion& c) {
  if (c.to_integral && std::isfinite(value)) value = to_integral(value, c.rounding);
  if (c.saturate) value = saturate(value);
  if (c.to == Type::tf32 && std::isnan(value)) return bits;  // unlike the other formats
  if (c.to == c.from && !c.to_integral && !c.saturate && !c.flush && !c.relu) return bits;
  return encode_float(value, c);
}

// 8-bit floats, round to nearest even, out of range to the largest number. e4m3 has no infinity.
u64 encode_small8(double value, bool e4m3, bool relu) {
  if (std::isnan(value)) return 0x7f;
  if (relu && !(value > 0)) return 0;
  const u64 sign = std::signbit(value) ? 0x80 : 0;
  const double magnitude = std::abs(value);
  const double highest_value = e4m3 ? 448.0 : 57344.0;
  const int mantissa = e4m3 ? 3 : 2;
  const int lowest_exponent = e4m3 ? -6 : -14;
  const int exponent = magnitude == 0 || !std::isfinite(magnitude)
                           ? lowest_exponent
                           : std::max(std::ilogb(magnitude), lowest_exponent);
  const double rounded = to_integral(std::ldexp(magnitude, mantissa - exponent), Rounding::nearest);
  if (!(std::ldexp(rounded, exponent - mantissa) <= highest_value)) return sign | (e4m3 ? 0x7e : 0x7b);
  // As an integer the encoding is the exponent field's steps plus the mantissa; a carry moves to the next
  // exponent.
  const u64 steps = static_cast<u64>(rounded) + (static_cast<u64>(exponent - lowest_exponent) << mantissa);
  return sign | steps;
}

double decode_small8(u64 bits, bool e4m3) {
  const u32 mantissa_bits = e4m3 ? 3 : 2;
  const u32 mantissa = static_cast<u32>(bits) & ((1u << mantissa_bits) - 1);
  const u32 exponent = static_cast<u32>(bits & 0x7f) >> mantissa_bits;
  const double sign = (bits & 0x80) != 0 ? -1.0 : 1.0;
  if (e4m3 && (bits & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  if (!e4m3 && exponent == 31)
    return mantissa == 0 ? sign * HUGE_VAL : std::numeric_limits<double>::quiet_NaN();
  const int lowest_exponent = e4m3 ? -6 : -14;
  if (exponent == 0) return sign * std::ldexp(mantissa, lowest_exponent - static_cast<int>(mantissa_bits));
  return sign *
         std::ldexp(mantissa + (1u << mantissa_bits),
                    static_cast<int>(exponent) - 1 + lowest_exponent - static_cast<int>(mantissa_bits));
}

}  // namespace

double decode_float(u64 bits, Type type) {
  switch (type) {
    case Type::f16:
      return static_cast<double>(float_from_half(static_cast<u16>(bits)));
    case Type::bf16:
      return static_cast<double>(float_from_bfloat(static_cast<u16>(bits)));
    case Type::f32:
    case Type::tf32:
      return static_cast<double>(std::bit_cast<float>(static_cast<u32>(bits)));
    case Type::e4m3x2:
    case Type::e5m2x2:
      return decode_small8(bits, type == Type::e4m3x2);
    default:
      return std::bit_cast<double>(bits);
  }
}

u64 encode_float(double value, const Conversion& c) {
  if (c.to == Type::e4m3x2 || c.to == Type::e5m2x2) return encode_small8(value, c.to == Type::e4m3x2, c.relu);
  if (c.relu && value < 0) value = 0;
  if (c.relu && value == 0) value = 0;
  if (c.to == Type::f64) return std::bit_cast<u64>(value);
  if (c.to == Type::f32) {
    if (std::isnan(value)) return 0x7fff'ffff;
    const float result = rounded_to_float(value);
    return std::bit_cast<u32>(c.flush ? flush_subnormal(result) : result);
  }
  const u32 mantissa = c.to == Type::bf16 ? 7 : 10;
  u32 bits = c.to == Type::f16    ? half_from_double(value, c.rounding)
             : c.to == Type::bf16 ? bfloat_from_double(value, c.rounding)
                                  : small_float_from_double<10, 8>(value, c.rounding);
  const u32 infinity = (c.to == Type::f16 ? 31u : 255u) << mantissa;
  const u32 sign = c.to == Type::tf32 ? 1u << 18 : 1u << 15;
  if (c.finite && (bits & ~sign) == infinity) bits -= 1;
  return c.to == Type::tf32 ? bits << 13 : bits;
}

u64 convert(u64 bits, const Conversion& c) {
  const bool from_float = is_float(c.from);
  const bool to_float = is_float(c.to);
  if (!from_float) return to_float ? integer_to_float(bits, c) : integer_to_integer(bits, c);
  double value = decode_float(bits & low_bits(type_bytes(c.from)), c.from);
  if (c.flush && c.from == Type::f32 && std::abs(value) < 0x1p-126) value = std::copysign(0.0, value);
  return to_float ? float_to_float(bits, value, c) : float_to_integer(value, c);
}

}  // namespace gpupool::softgpu::engine
