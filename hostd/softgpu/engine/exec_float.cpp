// f32 and f64: add, sub, mul, fma, mad, div, min, max, abs, neg. The common forms (round to nearest, no
// flushing) are plain loops; the others share one slower handler each.
#include <immintrin.h>

#include <limits>

#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

struct Add {
  template <typename T>
  static T of(T a, T b) {
    return a + b;
  }
  template <typename T>
  static T rounded(T a, T b) {
    return rounded_add(a, b);
  }
};
struct Sub {
  template <typename T>
  static T of(T a, T b) {
    return a - b;
  }
  template <typename T>
  static T rounded(T a, T b) {
    return rounded_sub(a, b);
  }
};
struct Mul {
  template <typename T>
  static T of(T a, T b) {
    return a * b;
  }
  template <typename T>
  static T rounded(T a, T b) {
    return rounded_mul(a, b);
  }
};
struct Div {
  template <typename T>
  static T of(T a, T b) {
    return a / b;
  }
  template <typename T>
  static T rounded(T a, T b) {
    return rounded_div(a, b);
  }
};

enum FloatFlag : u32 {
  kFlush = 1 << 8,
  kSaturate = 1 << 9,
  kNanWins = 1 << 10,
  kXorSign = 1 << 11,
  kAbsolute = 1 << 12
};

template <typename T>
T finished(T value, u32 flags) {
  if ((flags & kFlush) != 0) value = flush_subnormal(value);
  return (flags & kSaturate) != 0 ? saturate(value) : value;
}

template <typename T>
T prepared(T value, u32 flags) {
  return (flags & kFlush) != 0 ? flush_subnormal(value) : value;
}

// imm: the Rounding.
template <typename T, typename Op>
void binary_modified(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const RoundingScope scope(static_cast<Rounding>(i.imm));
  const u32 flags = i.flags;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    d[lane] = finished(Op::rounded(prepared(a[lane], flags), prepared(b[lane], flags)), flags);
  }
}

template <typename T>
void fma_modified(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const T* c = x.in<T>(i.c);
  const RoundingScope scope(static_cast<Rounding>(i.imm));
  const u32 flags = i.flags;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    d[lane] = finished(
        rounded_fma(prepared(a[lane], flags), prepared(b[lane], flags), prepared(c[lane], flags)), flags);
  }
}

struct Fma {
  template <typename T>
  static T of(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};

// The same with the processor's instruction, where it has one.
__attribute__((target("avx2,fma"))) void fma_float_avx(Lanes& x, const Inst& i) {
  const float* a = x.in<float>(i.a);
  const float* b = x.in<float>(i.b);
  const float* c = x.in<float>(i.c);
  float* d = x.out<float>(i.d);
  if (x.mask != ~0u) {
    for (u32 left = x.mask; left != 0; left &= left - 1) {
      const u32 lane = first_lane(left);
      d[lane] = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a[lane]), _mm_set_ss(b[lane]), _mm_set_ss(c[lane])));
    }
    return;
  }
  for (u32 lane = 0; lane < kWarpLanes; lane += 8)
    _mm256_storeu_ps(d + lane, _mm256_fmadd_ps(_mm256_loadu_ps(a + lane), _mm256_loadu_ps(b + lane),
                                               _mm256_loadu_ps(c + lane)));
}

__attribute__((target("avx2,fma"))) void fma_double_avx(Lanes& x, const Inst& i) {
  const double* a = x.in<double>(i.a);
  const double* b = x.in<double>(i.b);
  const double* c = x.in<double>(i.c);
  double* d = x.out<double>(i.d);
  if (x.mask != ~0u) {
    for (u32 left = x.mask; left != 0; left &= left - 1) {
      const u32 lane = first_lane(left);
      d[lane] = _mm_cvtsd_f64(_mm_fmadd_sd(_mm_set_sd(a[lane]), _mm_set_sd(b[lane]), _mm_set_sd(c[lane])));
    }
    return;
  }
  for (u32 lane = 0; lane < kWarpLanes; lane += 4)
    _mm256_storeu_pd(d + lane, _mm256_fmadd_pd(_mm256_loadu_pd(a + lane), _mm256_loadu_pd(b + lane),
                                               _mm256_loadu_pd(c + lane)));
}

// PTX: a NaN loses against a number unless .NaN is given; -0 is less than +0; the NaN is canonical.
template <typename T, bool kMax>
T min_max_of(T a, T b, u32 flags) {
  const bool negative = std::signbit(a) != std::signbit(b);
  if ((flags & kAbsolute) != 0) {
    a = std::abs(a);
    b = std::abs(b);
  }
  T result = 0;
  if (std::isnan(a) || std::isnan(b)) {
    const bool both = std::isnan(a) && std::isnan(b);
    if (both || (flags & kNanWins) != 0) {
      if constexpr (sizeof(T) == 4)
        return std::bit_cast<float>(0x7fff'ffffu);
      else
        return std::bit_cast<double>(0x7fff'ffff'ffff'ffffull);
    }
    result = std::isnan(a) ? b : a;
  } else if (a == b) {
    result = std::signbit(a) == kMax ? b : a;
  } else {
    result = (a < b) == kMax ? b : a;
  }
  return (flags & kXorSign) != 0 ? std::copysign(result, negative ? T(-1) : T(1)) : result;
}

template <typename T, bool kMax>
void min_max(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const u32 flags = i.flags;
  each_lane(x.mask, [=](u32 lane) {
    d[lane] = finished(min_max_of<T, kMax>(prepared(a[lane], flags), prepared(b[lane], flags), flags), flags);
  });
}

template <typename U, u64 kSign>
struct AbsBits {
  static U of(U a) { return a & static_cast<U>(~kSign); }
};
template <typename U, u64 kSign>
struct NegBits {
  static U of(U a) { return a ^ static_cast<U>(kSign); }
};
struct AbsFlush {
  static float of(float a) { return flush_subnormal(std::abs(a)); }
};
struct NegFlush {
  static float of(float a) { return flush_subnormal(-a); }
};

template <typename T>
Handler modified_handler(std::string_view opcode) {
  if (opcode == "add") return &binary_modified<T, Add>;
  if (opcode == "sub") return &binary_modified<T, Sub>;
  if (opcode == "mul") return &binary_modified<T, Mul>;
  if (opcode == "div") return &binary_modified<T, Div>;
  return nullptr;
}

template <typename T>
Handler plain_handler(std::string_view opcode) {
  if (opcode == "add") return &binary_op<T, Add>;
  if (opcode == "sub") return &binary_op<T, Sub>;
  if (opcode == "mul") return &binary_op<T, Mul>;
  if (opcode == "div") return &binary_op<T, Div>;
  return nullptr;
}

template <typename T>
Handler plain_fma() {
  static const bool hardware = __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("avx2") != 0;
  if (!hardware) return &ternary_op<T, Fma>;
  if constexpr (sizeof(T) == 4)
    return &fma_float_avx;
  else
    return &fma_double_avx;
}

void take_flags(Lowering& l, Type type) {
  if (type == Type::f32 && l.take("ftz")) l.inst.flags |= kFlush;
  if (type == Type::f32 && l.take("sat")) l.inst.flags |= kSaturate;
}

template <typename T>
void lower_sum(Lowering& l, Type type) {
  const std::string_view opcode = l.opcode();
  const std::optional<Rounding> rounding = take_rounding(l);
  const bool approximate = opcode == "div" && type == Type::f32 && (l.take("approx") || l.take("full"));
  if (opcode == "div" && rounding.has_value() == approximate) l.unsupported();
  take_flags(l, type);
  l.inst.imm = static_cast<u64>(rounding.value_or(Rounding::nearest));
  const bool plain = l.inst.imm == 0 && (l.inst.flags & (kFlush | kSaturate)) == 0;
  if (opcode == "fma" || opcode == "mad") {
    if (!rounding) l.unsupported();
    l.ternary(type);
    return l.emit(plain ? plain_fma<T>() : &fma_modified<T>);
  }
  l.binary(type);
  l.emit(plain ? plain_handler<T>(opcode) : modified_handler<T>(opcode));
}

void lower_min_max(Lowering& l, Type type) {
  take_flags(l, type);
  if (type == Type::f32 && l.take("NaN")) l.inst.flags |= kNanWins;
  if (type == Type::f32 && l.take("xorsign")) {
    if (!l.take("abs")) l.unsupported();
    l.inst.flags |= kXorSign | kAbsolute;
  }
  if ((l.inst.flags & kSaturate) != 0) l.unsupported();
  l.binary(type);
  const bool max = l.opcode() == "max";
  if (type == Type::f32) return l.emit(max ? &min_max<float, true> : &min_max<float, false>);
  l.emit(max ? &min_max<double, true> : &min_max<double, false>);
}

void lower_sign(Lowering& l, Type type) {
  const bool absolute = l.opcode() == "abs";
  l.unary(type);
  if (type == Type::f32 && l.take("ftz"))
    return l.emit(absolute ? &unary_op<float, AbsFlush> : &unary_op<float, NegFlush>);
  if (type == Type::f32)
    return l.emit(absolute ? &unary_op<u32, AbsBits<u32, 1ull << 31>>
                           : &unary_op<u32, NegBits<u32, 1ull << 31>>);
  l.emit(absolute ? &unary_op<u64, AbsBits<u64, 1ull << 63>> : &unary_op<u64, NegBits<u64, 1ull << 63>>);
}

void lower_fma(Lowering& l) {
  const Type type = l.take_type();
  if (!is_float(type)) l.unsupported();
  lower_float_arithmetic(l, type);
}

}  // namespace

std::optional<Rounding> take_rounding(Lowering& l) {
  if (l.take("rn")) return Rounding::nearest;
  if (l.take("rz")) return Rounding::zero;
  if (l.take("rm")) return Rounding::down;
  if (l.take("rp")) return Rounding::up;
  return std::nullopt;
}

void lower_float_arithmetic(Lowering& l, Type type) {
  if (type == Type::f16 || type == Type::f16x2 || type == Type::bf16 || type == Type::bf16x2)
    return lower_half_arithmetic(l, type);
  if (type != Type::f32 && type != Type::f64) l.unsupported();
  const std::string_view opcode = l.opcode();
  if (opcode == "min" || opcode == "max") return lower_min_max(l, type);
  if (opcode == "abs" || opcode == "neg") return lower_sign(l, type);
  if (type == Type::f32)
    lower_sum<float>(l, type);
  else
    lower_sum<double>(l, type);
}

void add_arithmetic_opcodes(OpcodeTable& table) {
  table["fma"] = &lower_fma;
}

}  // namespace gpupool::softgpu::engine
