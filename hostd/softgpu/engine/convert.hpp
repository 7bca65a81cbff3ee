// Conversions between PTX number types, one value at a time (PTX ISA 9.0, 9.7.9.21). Values travel as bits in
// a u64.
#pragma once

#include "hostd/softgpu/engine/float16.hpp"
#include "hostd/softgpu/engine/type.hpp"

namespace gpupool::softgpu::engine {

struct Conversion {
  Type to = Type::none;
  Type from = Type::none;
  Rounding rounding = Rounding::nearest;
  bool to_integral = false;  // .rni and its like between floating point types
  bool flush = false;
  bool saturate = false;
  bool finite = false;  // .satfinite
  bool relu = false;

  [[nodiscard]] u64 packed() const {
    return static_cast<u64>(to) | static_cast<u64>(from) << 8 | static_cast<u64>(rounding) << 16 |
           static_cast<u64>(to_integral) << 24 | static_cast<u64>(flush) << 25 |
           static_cast<u64>(saturate) << 26 | static_cast<u64>(finite) << 27 | static_cast<u64>(relu) << 28;
  }
  static Conversion unpack(u64 bits) {
    return {static_cast<Type>(bits & 0xff),
            static_cast<Type>(bits >> 8 & 0xff),
            static_cast<Rounding>(bits >> 16 & 0xff),
            (bits >> 24 & 1) != 0,
            (bits >> 25 & 1) != 0,
            (bits >> 26 & 1) != 0,
            (bits >> 27 & 1) != 0,
            (bits >> 28 & 1) != 0};
  }
};

// The result fills 64 bits: integers extended by their sign or zeros. Rounds with the processor's direction
// where the target is f32 or f64, so the caller must have set it to conversion.rounding.
u64 convert(u64 bits, const Conversion& conversion);

// Rounds to f32, in the processor's direction, or to one of the small types. `value` is exact.
u64 encode_float(double value, const Conversion& conversion);
double decode_float(u64 bits, Type type);

}  // namespace gpupool::softgpu::engine
