// Bytes and masks: prmt, bmsk, fns, dp4a, dp2a.
#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

// prmt: bytes of b:a chosen by nibbles; bit 3 of a nibble replicates the byte's sign.
struct Permute {
  static u32 of(u32 a, u32 b, u32 c) {
    const u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 result = 0;
    for (u32 n = 0; n < 4; ++n) {
      const u32 selector = c >> (4 * n) & 15;
      u32 byte = static_cast<u32>(bytes >> (8 * (selector & 7))) & 0xff;
      if ((selector & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
      result |= byte << (8 * n);
    }
    return result;
  }
};
// The named modes, as selectors for c = 0..3.
template <u32 kZero, u32 kOne, u32 kTwo, u32 kThree>
struct PermuteMode {
  static u32 of(u32 a, u32 b, u32 c) {
    constexpr u32 selectors[4] = {kZero, kOne, kTwo, kThree};
    return Permute::of(a, b, selectors[c & 3]);
  }
};

void lower_prmt(Lowering& l) {
  if (l.take_type() != Type::b32) l.unsupported();
  l.ternary(Type::b32);
  if (l.take("f4e")) return l.emit(&ternary_op<u32, PermuteMode<0x3210, 0x4321, 0x5432, 0x6543>>);
  if (l.take("b4e")) return l.emit(&ternary_op<u32, PermuteMode<0x5670, 0x6701, 0x7012, 0x0123>>);
  if (l.take("rc8")) return l.emit(&ternary_op<u32, PermuteMode<0x0000, 0x1111, 0x2222, 0x3333>>);
  if (l.take("ecl")) return l.emit(&ternary_op<u32, PermuteMode<0x3210, 0x3211, 0x3222, 0x3333>>);
  if (l.take("ecr")) return l.emit(&ternary_op<u32, PermuteMode<0x0000, 0x1110, 0x2210, 0x3210>>);
  if (l.take("rc16")) return l.emit(&ternary_op<u32, PermuteMode<0x1010, 0x3232, 0x1010, 0x3232>>);
  l.emit(&ternary_op<u32, Permute>);
}

// b ones from position a on.
template <bool kClamp>
struct BitMask {
  static u32 of(u32 a, u32 b) {
    if (!kClamp) return ((b & 31) == 0 ? 0u : (1u << (b & 31)) - 1) << (a & 31);
    if (a >= 32) return 0;
    const u32 ones = b >= 32 ? ~0u : (1u << b) - 1;
    return ones << a;
  }
};

void lower_bmsk(Lowering& l) {
  const bool clamp = l.take("clamp");
  if (!clamp && !l.take("wrap")) l.unsupported();
  if (l.take_type() != Type::b32) l.unsupported();
  l.binary(Type::b32);
  l.emit(clamp ? &binary_op<u32, BitMask<true>> : &binary_op<u32, BitMask<false>>);
}

// The n-th set bit (c) of a, from position b on, upwards or downwards.
struct FindNth {
  static u32 of(u32 mask, u32 base, u32 offset) {
    const i32 n = static_cast<i32>(offset);
    if (base > 31) return ~0u;
    if (n == 0) return (mask >> base & 1) != 0 ? base : ~0u;
    i32 left = n > 0 ? n : -n;
    for (i32 bit = static_cast<i32>(base); bit >= 0 && bit < 32; bit += n > 0 ? 1 : -1)
      if ((mask >> bit & 1) != 0 && --left == 0) return static_cast<u32>(bit);
    return ~0u;
  }
};

void lower_fns(Lowering& l) {
  if (l.take_type() != Type::b32) l.unsupported();
  l.ternary(Type::b32);
  l.emit(&ternary_op<u32, FindNth>);
}

// imm: bit 0 a is signed, bit 1 b is signed, bit 2 the upper half (dp2a.hi).
template <bool kFour>
void dot_product(Lanes& x, const Inst& i) {
  u32* d = x.out<u32>(i.d);
  const u32* a = x.in<u32>(i.a);
  const u32* b = x.in<u32>(i.b);
  const u32* c = x.in<u32>(i.c);
  const auto byte = [](u32 word, u32 n, bool sign) -> i32 {
    const u8 value = static_cast<u8>(word >> (8 * n));
    return sign ? static_cast<std::int8_t>(value) : value;
  };
  const auto half = [](u32 word, u32 n, bool sign) -> i32 {
    const u16 value = static_cast<u16>(word >> (16 * n));
    return sign ? static_cast<std::int16_t>(value) : value;
  };
  const bool first = (i.imm & 1) != 0;
  const bool second = (i.imm & 2) != 0;
  const u32 high = (i.imm & 4) != 0 ? 2 : 0;
  each_lane(x.mask, [&](u32 lane) {
    u32 sum = c[lane];
    if constexpr (kFour) {
      for (u32 n = 0; n < 4; ++n) sum += static_cast<u32>(byte(a[lane], n, first) * byte(b[lane], n, second));
    } else {
      for (u32 n = 0; n < 2; ++n)
        sum += static_cast<u32>(half(a[lane], n, first) * byte(b[lane], n + high, second));
    }
    d[lane] = sum;
  });
}

void lower_dot(Lowering& l) {
  const bool four = l.opcode() == "dp4a";
  if (!four && l.take("hi"))
    l.inst.imm |= 4;
  else if (!four && !l.take("lo"))
    l.unsupported();
  const Type first = l.take_type();
  const Type second = l.take_type();
  if (type_bytes(first) != 4 || type_bytes(second) != 4 || !is_integer(first) || !is_integer(second))
    l.unsupported();
  if (is_signed(first)) l.inst.imm |= 1;
  if (is_signed(second)) l.inst.imm |= 2;
  l.ternary(Type::b32);
  l.emit(four ? &dot_product<true> : &dot_product<false>);
}

}  // namespace

void add_byte_opcodes(OpcodeTable& table) {
  table["prmt"] = &lower_prmt;
  table["bmsk"] = &lower_bmsk;
  table["fns"] = &lower_fns;
  table["dp4a"] = &lower_dot;
  table["dp2a"] = &lower_dot;
}

}  // namespace gpupool::softgpu::engine
