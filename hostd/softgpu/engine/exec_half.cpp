// f16, bf16 and pairs of them: add, sub, mul, fma, min, max, abs, neg. Sums and products of two such numbers
// are exact enough in float or double that one rounding to 16 bits gives the right result; fma goes through
// fused_to_odd().
#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

enum HalfFlag : u32 {
  kFlush = 1 << 8,
  kSaturate = 1 << 9,
  kNanWins = 1 << 10,
  kXorSign = 1 << 11,
  kRelu = 1 << 12
};

struct F16 {
  static double decode(u16 bits) { return static_cast<double>(float_from_half(bits)); }
  static u16 encode(double value) { return half_from_double(value); }
  static constexpr u16 kLowestNormal = 0x0400;
};
struct Bf16 {
  static double decode(u16 bits) { return static_cast<double>(float_from_bfloat(bits)); }
  static u16 encode(double value) { return bfloat_from_double(value); }
  static constexpr u16 kLowestNormal = 0x0080;
};

template <typename Of>
u16 flushed(u16 bits, u32 flags) {
  return (flags & kFlush) != 0 && (bits & 0x7fff) < Of::kLowestNormal ? static_cast<u16>(bits & 0x8000)
                                                                      : bits;
}

template <typename Of>
double prepared(u16 bits, u32 flags) {
  return Of::decode(flushed<Of>(bits, flags));
}

template <typename Of>
u16 finished(double value, u32 flags) {
  if ((flags & kSaturate) != 0) value = saturate(value);
  if ((flags & kRelu) != 0 && value <= 0) value = 0;
  return flushed<Of>(Of::encode(value), flags);
}

// A double holds the sum of two f16 exactly, but not of two bf16 (exponents range over 253): rounding to odd
// makes the second rounding right there too.
struct Add {
  static double of(double a, double b, double) { return fused_to_odd(a, 1.0, b); }
};
struct Sub {
  static double of(double a, double b, double) { return fused_to_odd(a, 1.0, -b); }
};
struct Mul {
  static double of(double a, double b, double) { return a * b; }
};
struct Fma {
  static double of(double a, double b, double c) { return fused_to_odd(a, b, c); }
};

template <typename Of, typename Op, bool kThree>
void half_op(Lanes& x, const Inst& i) {
  u16* d = x.out<u16>(i.d);
  const u16* a = x.in<u16>(i.a);
  const u16* b = x.in<u16>(i.b);
  const u16* c = kThree ? x.in<u16>(i.c) : b;
  const u32 flags = i.flags;
  each_lane(x.mask, [=](u32 lane) {
    d[lane] = finished<Of>(
        Op::of(prepared<Of>(a[lane], flags), prepared<Of>(b[lane], flags), prepared<Of>(c[lane], flags)),
        flags);
  });
}

template <typename Of, typename Op, bool kThree>
void pair_op(Lanes& x, const Inst& i) {
  u32* d = x.out<u32>(i.d);
  const u32* a = x.in<u32>(i.a);
  const u32* b = x.in<u32>(i.b);
  const u32* c = kThree ? x.in<u32>(i.c) : b;
  const u32 flags = i.flags;
  const auto one = [flags](u32 p, u32 q, u32 r) -> u32 {
    return finished<Of>(
        Op::of(prepared<Of>(static_cast<u16>(p), flags), prepared<Of>(static_cast<u16>(q), flags),
               prepared<Of>(static_cast<u16>(r), flags)),
        flags);
  };
  each_lane(x.mask, [=](u32 lane) {
    const u32 low = one(a[lane], b[lane], c[lane]);
    const u32 high = one(a[lane] >> 16, b[lane] >> 16, c[lane] >> 16);
    d[lane] = high << 16 | low;
  });
}

// On the bits: a number beats a NaN unless .NaN is given, -0 is less than +0.
template <typename Of, bool kMax>
u16 min_max_of(u16 a, u16 b, u32 flags) {
  a = flushed<Of>(a, flags);
  b = flushed<Of>(b, flags);
  const u16 sign = static_cast<u16>((a ^ b) & 0x8000);
  if ((flags & kXorSign) != 0) {
    a &= 0x7fff;
    b &= 0x7fff;
  }
  const double p = Of::decode(a);
  const double q = Of::decode(b);
  u16 result = 0;
  if (std::isnan(p) || std::isnan(q)) {
    if ((std::isnan(p) && std::isnan(q)) || (flags & kNanWins) != 0) return 0x7fff;
    result = std::isnan(p) ? b : a;
  } else if (p == q) {
    result = ((a & 0x8000) != 0) == kMax ? b : a;
  } else {
    result = (p < q) == kMax ? b : a;
  }
  if ((flags & kRelu) != 0 && (result & 0x8000) != 0) result = 0;
  return (flags & kXorSign) != 0 ? static_cast<u16>(result | sign) : result;
}

template <typename Of, bool kMax>
void half_min_max(Lanes& x, const Inst& i) {
  u16* d = x.out<u16>(i.d);
  const u16* a = x.in<u16>(i.a);
  const u16* b = x.in<u16>(i.b);
  each_lane(x.mask,
            [=, flags = i.flags](u32 lane) { d[lane] = min_max_of<Of, kMax>(a[lane], b[lane], flags); });
}

template <typename Of, bool kMax>
void pair_min_max(Lanes& x, const Inst& i) {
  u32* d = x.out<u32>(i.d);
  const u32* a = x.in<u32>(i.a);
  const u32* b = x.in<u32>(i.b);
  each_lane(x.mask, [=, flags = i.flags](u32 lane) {
    const u32 low = min_max_of<Of, kMax>(static_cast<u16>(a[lane]), static_cast<u16>(b[lane]), flags);
    const u32 high =
        min_max_of<Of, kMax>(static_cast<u16>(a[lane] >> 16), static_cast<u16>(b[lane] >> 16), flags);
    d[lane] = high << 16 | low;
  });
}

struct Abs {
  static u16 of(u16 a) { return a & 0x7fff; }
};
struct Neg {
  static u16 of(u16 a) { return a ^ 0x8000; }
};

template <typename Of, typename Op>
void half_sign(Lanes& x, const Inst& i) {
  u16* d = x.out<u16>(i.d);
  const u16* a = x.in<u16>(i.a);
  each_lane(x.mask, [=, flags = i.flags](u32 lane) { d[lane] = Op::of(flushed<Of>(a[lane], flags)); });
}

template <typename Of, typename Op>
void pair_sign(Lanes& x, const Inst& i) {
  u32* d = x.out<u32>(i.d);
  const u32* a = x.in<u32>(i.a);
  each_lane(x.mask, [=, flags = i.flags](u32 lane) {
    const u32 low = Op::of(flushed<Of>(static_cast<u16>(a[lane]), flags));
    const u32 high = Op::of(flushed<Of>(static_cast<u16>(a[lane] >> 16), flags));
    d[lane] = high << 16 | low;
  });
}

template <typename Of>
Handler handler_for(std::string_view opcode, bool pair) {
  if (opcode == "add") return pair ? &pair_op<Of, Add, false> : &half_op<Of, Add, false>;
  if (opcode == "sub") return pair ? &pair_op<Of, Sub, false> : &half_op<Of, Sub, false>;
  if (opcode == "mul") return pair ? &pair_op<Of, Mul, false> : &half_op<Of, Mul, false>;
  if (opcode == "fma") return pair ? &pair_op<Of, Fma, true> : &half_op<Of, Fma, true>;
  if (opcode == "min") return pair ? &pair_min_max<Of, false> : &half_min_max<Of, false>;
  if (opcode == "max") return pair ? &pair_min_max<Of, true> : &half_min_max<Of, true>;
  if (opcode == "abs") return pair ? &pair_sign<Of, Abs> : &half_sign<Of, Abs>;
  if (opcode == "neg") return pair ? &pair_sign<Of, Neg> : &half_sign<Of, Neg>;
  return nullptr;
}

}  // namespace

void lower_half_arithmetic(Lowering& l, Type type) {
  const std::string_view opcode = l.opcode();
  const bool brain = type == Type::bf16 || type == Type::bf16x2;
  const bool pair = type == Type::f16x2 || type == Type::bf16x2;
  const bool minimum = opcode == "min" || opcode == "max";
  const bool sign = opcode == "abs" || opcode == "neg";
  const bool fused = opcode == "fma";
  if (!minimum && !sign) l.take("rn");
  if (!brain && l.take("ftz")) l.inst.flags |= kFlush;
  if (!minimum && !sign && !brain && l.take("sat")) l.inst.flags |= kSaturate;
  if (fused && l.take("relu")) l.inst.flags |= kRelu;
  if (minimum && l.take("NaN")) l.inst.flags |= kNanWins;
  if (minimum && l.take("xorsign")) {
    if (!l.take("abs")) l.unsupported();
    l.inst.flags |= kXorSign;
  }
  if (sign)
    l.unary(type);
  else if (fused)
    l.ternary(type);
  else
    l.binary(type);
  const Handler handler = brain ? handler_for<Bf16>(opcode, pair) : handler_for<F16>(opcode, pair);
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

}  // namespace gpupool::softgpu::engine
