// rcp, sqrt, rsqrt, sin, cos, ex2, lg2, tanh, copysign. The approximate forms are computed with libm and
// rounded: closer to the exact value than the hardware's, within its documented error.
#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

enum MathFlag : u32 { kFlush = 1 << 8 };

struct Rcp {
  template <typename T>
  static T of(T a) {
    return rounded_div(T(1), a);
  }
};
struct Sqrt {
  template <typename T>
  static T of(T a) {
    return rounded_sqrt(a);
  }
};
struct Rsqrt {
  template <typename T>
  static T of(T a) {
    return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)));
  }
};
struct Sin {
  static float of(float a) { return static_cast<float>(std::sin(static_cast<double>(a))); }
};
struct Cos {
  static float of(float a) { return static_cast<float>(std::cos(static_cast<double>(a))); }
};
struct Exp2 {
  static float of(float a) { return static_cast<float>(std::exp2(static_cast<double>(a))); }
};
struct Log2 {
  static float of(float a) { return static_cast<float>(std::log2(static_cast<double>(a))); }
};
struct Tanh {
  static float of(float a) { return static_cast<float>(std::tanh(static_cast<double>(a))); }
};

// imm: the Rounding.
template <typename T, typename Op>
void math_op(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const bool flush = (i.flags & kFlush) != 0;
  const RoundingScope scope(static_cast<Rounding>(i.imm));
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    const T value = Op::of(flush ? flush_subnormal(a[lane]) : a[lane]);
    d[lane] = flush ? flush_subnormal(value) : value;
  }
}

struct HalfFormat {
  static float decode(u16 bits) { return float_from_half(bits); }
  static u16 encode(float value) { return half_from_double(static_cast<double>(value)); }
};
struct BfloatFormat {
  static float decode(u16 bits) { return float_from_bfloat(bits); }
  static u16 encode(float value) { return bfloat_from_double(static_cast<double>(value)); }
};

template <typename Format, typename Op, typename U>
void small_math_op(Lanes& x, const Inst& i) {
  U* d = x.out<U>(i.d);
  const U* a = x.in<U>(i.a);
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    u32 result = 0;
    for (u32 shift = 0; shift < sizeof(U) * 8; shift += 16) {
      const u16 bits = static_cast<u16>(static_cast<u32>(a[lane]) >> shift);
      result |= static_cast<u32>(Format::encode(Op::of(Format::decode(bits)))) << shift;
    }
    d[lane] = static_cast<U>(result);
  }
}

template <typename Op>
Handler small_handler(Type type) {
  switch (type) {
    case Type::f16:
      return &small_math_op<HalfFormat, Op, u16>;
    case Type::f16x2:
      return &small_math_op<HalfFormat, Op, u32>;
    case Type::bf16:
      return &small_math_op<BfloatFormat, Op, u16>;
    case Type::bf16x2:
      return &small_math_op<BfloatFormat, Op, u32>;
    default:
      return nullptr;
  }
}

// rcp and sqrt, correctly rounded or approximate, and rsqrt.approx.
void lower_root(Lowering& l) {
  const std::string_view opcode = l.opcode();
  const Type type = l.take_type();
  if (type != Type::f32 && type != Type::f64) l.unsupported();
  const auto rounding = take_rounding(l);
  const bool approximate = l.take("approx");
  if (rounding.has_value() == approximate) l.unsupported();
  if (opcode == "rsqrt" && !approximate) l.unsupported();
  if (l.take("ftz")) {
    if (type == Type::f64 && !approximate) l.unsupported();
    l.inst.flags |= kFlush;
  }
  l.inst.imm = static_cast<u64>(rounding.value_or(Rounding::nearest));
  l.unary(type);
  const bool single = type == Type::f32;
  if (opcode == "rcp") return l.emit(single ? &math_op<float, Rcp> : &math_op<double, Rcp>);
  if (opcode == "sqrt") return l.emit(single ? &math_op<float, Sqrt> : &math_op<double, Sqrt>);
  l.emit(single ? &math_op<float, Rsqrt> : &math_op<double, Rsqrt>);
}

void lower_trigonometric(Lowering& l) {
  if (l.take_type() != Type::f32 || !l.take("approx")) l.unsupported();
  if (l.take("ftz")) l.inst.flags |= kFlush;
  l.unary(Type::f32);
  if (l.opcode() == "sin") return l.emit(&math_op<float, Sin>);
  if (l.opcode() == "cos") return l.emit(&math_op<float, Cos>);
  l.emit(&math_op<float, Log2>);
}

void lower_exponential(Lowering& l) {
  const bool exponential = l.opcode() == "ex2";
  const Type type = l.take_type();
  if (!l.take("approx")) l.unsupported();
  if (type == Type::f32) {
    if (exponential && l.take("ftz")) l.inst.flags |= kFlush;
    l.unary(type);
    return l.emit(exponential ? &math_op<float, Exp2> : &math_op<float, Tanh>);
  }
  // ex2.approx.ftz.bf16 is the only form for bf16: its subnormal results vanish anyway within the stated
  // error.
  if (exponential && (type == Type::bf16 || type == Type::bf16x2) && !l.take("ftz")) l.unsupported();
  const Handler handler = exponential ? small_handler<Exp2>(type) : small_handler<Tanh>(type);
  if (handler == nullptr) l.unsupported();
  l.unary(type);
  l.emit(handler);
}

template <typename U, u64 kSign>
struct CopySign {
  static U of(U a, U b) { return static_cast<U>((b & ~static_cast<U>(kSign)) | (a & static_cast<U>(kSign))); }
};

void lower_copysign(Lowering& l) {
  const Type type = l.take_type();
  if (type != Type::f32 && type != Type::f64) l.unsupported();
  l.binary(type);
  l.emit(type == Type::f32 ? &binary_op<u32, CopySign<u32, 1ull << 31>>
                           : &binary_op<u64, CopySign<u64, 1ull << 63>>);
}

}  // namespace

void add_math_opcodes(OpcodeTable& table) {
  table["rcp"] = &lower_root;
  table["sqrt"] = &lower_root;
  table["rsqrt"] = &lower_root;
  table["sin"] = &lower_trigonometric;
  table["cos"] = &lower_trigonometric;
  table["lg2"] = &lower_trigonometric;
  table["ex2"] = &lower_exponential;
  table["tanh"] = &lower_exponential;
  table["copysign"] = &lower_copysign;
}

}  // namespace gpupool::softgpu::engine
