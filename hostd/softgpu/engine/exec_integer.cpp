// Integer arithmetic of one width: add, sub, mul, mad, div, rem, min, max, abs, neg, sad, mul24, and pairs of
// 16-bit numbers in a 32-bit register.
#include <bit>
#include <limits>

#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

using i16 = std::int16_t;

struct Add {
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(a + b);
  }
};
struct Sub {
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(a - b);
  }
};
struct MulLo {
  static u16 of(u16 a, u16 b) { return static_cast<u16>(static_cast<u32>(a) * b); }
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(a * b);
  }
};
struct MadLo {
  template <typename T>
  static T of(T a, T b, T c) {
    return static_cast<T>(MulLo::of(a, b) + c);
  }
};

template <typename T>
struct Wider;
template <>
struct Wider<u16> {
  using type = u32;
};
template <>
struct Wider<i16> {
  using type = i32;
};
template <>
struct Wider<u32> {
  using type = u64;
};
template <>
struct Wider<i32> {
  using type = i64;
};
template <>
struct Wider<u64> {
  using type = unsigned __int128;
};
template <>
struct Wider<i64> {
  using type = __int128;
};

struct MulHi {
  template <typename T>
  static T of(T a, T b) {
    using W = typename Wider<T>::type;
    return static_cast<T>((static_cast<W>(a) * static_cast<W>(b)) >> (sizeof(T) * 8));
  }
};
struct MadHi {
  template <typename T>
  static T of(T a, T b, T c) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(static_cast<U>(MulHi::of(a, b)) + static_cast<U>(c)));
  }
};
// The GPU does not trap: a division by zero gives all ones, a remainder by zero the dividend (what its
// division sequences compute; the PTX ISA leaves it open).
struct Div {
  template <typename T>
  static T of(T a, T b) {
    if (b == 0) return static_cast<T>(~static_cast<T>(0));
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <typename T>
  static T of(T a, T b) {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return 0;
    return static_cast<T>(a % b);
  }
};
struct Min {
  template <typename T>
  static T of(T a, T b) {
    return b < a ? b : a;
  }
};
struct Max {
  template <typename T>
  static T of(T a, T b) {
    return a < b ? b : a;
  }
};
struct Abs {
  template <typename T>
  static T of(T a) {
    return a < 0 ? static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a)) : a;
  }
};
struct Neg {
  template <typename T>
  static T of(T a) {
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  }
};
struct Sad {
  template <typename T>
  static T of(T a, T b, T c) {
    using U = std::make_unsigned_t<T>;
    const U difference =
        static_cast<U>(a < b ? static_cast<U>(b) - static_cast<U>(a) : static_cast<U>(a) - static_cast<U>(b));
    return static_cast<T>(static_cast<U>(static_cast<U>(c) + difference));
  }
};
struct AddSat {
  static i32 of(i32 a, i32 b) {
    const i64 sum = static_cast<i64>(a) + b;
    return static_cast<i32>(sum > 0x7fff'ffff ? 0x7fff'ffff : sum < -0x8000'0000ll ? -0x8000'0000ll : sum);
  }
};
struct SubSat {
  static i32 of(i32 a, i32 b) {
    const i64 difference = static_cast<i64>(a) - b;
    return static_cast<i32>(difference > 0x7fff'ffff      ? 0x7fff'ffff
                            : difference < -0x8000'0000ll ? -0x8000'0000ll
                                                          : difference);
  }
};
struct MadHiSat {
  static i32 of(i32 a, i32 b, i32 c) { return AddSat::of(MulHi::of(a, b), c); }
};
template <typename Op>
struct Relu {
  template <typename T>
  static T of(T a, T b) {
    const T value = Op::of(a, b);
    return value < 0 ? static_cast<T>(0) : value;
  }
};

template <typename T>
T low24(T value) {
  if constexpr (std::is_signed_v<T>)
    return static_cast<T>(static_cast<T>(static_cast<u32>(value) << 8) >> 8);
  else
    return value & 0xff'ffffu;
}
struct Mul24Lo {
  template <typename T>
  static T of(T a, T b) {
    using W = typename Wider<T>::type;
    return static_cast<T>(static_cast<W>(low24(a)) * low24(b));
  }
};
struct Mul24Hi {
  template <typename T>
  static T of(T a, T b) {
    using W = typename Wider<T>::type;
    return static_cast<T>((static_cast<W>(low24(a)) * low24(b)) >> 16);
  }
};
struct Mad24Lo {
  template <typename T>
  static T of(T a, T b, T c) {
    return static_cast<T>(static_cast<u32>(Mul24Lo::of(a, b)) + static_cast<u32>(c));
  }
};
struct Mad24Hi {
  template <typename T>
  static T of(T a, T b, T c) {
    return static_cast<T>(static_cast<u32>(Mul24Hi::of(a, b)) + static_cast<u32>(c));
  }
};

// Two 16-bit numbers in one register.
template <typename T, typename Op>
struct Pair {
  static u32 of(u32 a, u32 b) {
    const u16 low = static_cast<u16>(Op::of(static_cast<T>(a), static_cast<T>(b)));
    const u16 high = static_cast<u16>(Op::of(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
    return static_cast<u32>(high) << 16 | low;
  }
};

template <typename T>
void mul_wide(Lanes& x, const Inst& i) {
  using W = typename Wider<T>::type;
  W* d = x.out<W>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  each_lane(x.mask, [=](u32 lane) { d[lane] = static_cast<W>(a[lane]) * static_cast<W>(b[lane]); });
}

template <typename T>
void mad_wide(Lanes& x, const Inst& i) {
  using W = typename Wider<T>::type;
  using U = std::make_unsigned_t<W>;
  U* d = x.out<U>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const U* c = x.in<U>(i.c);
  each_lane(x.mask, [=](u32 lane) {
    d[lane] = static_cast<U>(static_cast<W>(a[lane]) * static_cast<W>(b[lane])) + c[lane];
  });
}

template <typename Op>
Handler packed_handler(Type type) {
  return type == Type::u16x2 ? &binary_op<u32, Pair<u16, Op>> : &binary_op<u32, Pair<i16, Op>>;
}

template <typename Op, typename Saturating>
void lower_add_sub(Lowering& l) {
  const Type type = l.take_type();
  if (is_float(type)) return lower_float_arithmetic(l, type);
  l.binary(type);
  if (type == Type::u16x2 || type == Type::s16x2) return l.emit(&binary_op<u32, Pair<u16, Op>>);
  if (!is_integer(type)) l.unsupported();
  if (l.take("sat")) {
    if (type != Type::s32) l.unsupported();
    return l.emit(&binary_op<i32, Saturating>);
  }
  const Handler handler = for_unsigned(type, []<typename T>() -> Handler { return &binary_op<T, Op>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

Type twice(Type type) {
  switch (type) {
    case Type::u16:
      return Type::u32;
    case Type::s16:
      return Type::s32;
    case Type::u32:
      return Type::u64;
    case Type::s32:
      return Type::s64;
    default:
      return Type::none;
  }
}

Handler wide_handler(Type type, bool add) {
  switch (type) {
    case Type::u16:
      return add ? &mad_wide<u16> : &mul_wide<u16>;
    case Type::s16:
      return add ? &mad_wide<i16> : &mul_wide<i16>;
    case Type::u32:
      return add ? &mad_wide<u32> : &mul_wide<u32>;
    case Type::s32:
      return add ? &mad_wide<i32> : &mul_wide<i32>;
    default:
      return nullptr;
  }
}

void lower_wide(Lowering& l, Type type, bool add) {
  const Handler handler = wide_handler(type, add);
  if (handler == nullptr) l.unsupported();
  l.expect_count(add ? 4 : 3);
  l.inst.d = l.destination(0, twice(type));
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, type);
  if (add) l.inst.c = l.source(3, twice(type));
  l.emit(handler);
}

void lower_mul(Lowering& l) {
  const Type type = l.take_type();
  if (is_float(type)) return lower_float_arithmetic(l, type);
  if (!is_integer(type)) l.unsupported();
  if (l.take("wide")) return lower_wide(l, type, false);
  l.binary(type);
  if (l.take("hi"))
    return l.emit(for_integer(type, []<typename T>() -> Handler { return &binary_op<T, MulHi>; }));
  if (!l.take("lo")) l.unsupported();
  l.emit(for_unsigned(type, []<typename T>() -> Handler { return &binary_op<T, MulLo>; }));
}

void lower_mad(Lowering& l) {
  const Type type = l.take_type();
  if (is_float(type)) return lower_float_arithmetic(l, type);
  if (!is_integer(type)) l.unsupported();
  if (l.take("wide")) return lower_wide(l, type, true);
  l.ternary(type);
  if (l.take("hi")) {
    if (l.take("sat")) return type == Type::s32 ? l.emit(&ternary_op<i32, MadHiSat>) : l.unsupported();
    return l.emit(for_integer(type, []<typename T>() -> Handler { return &ternary_op<T, MadHi>; }));
  }
  if (!l.take("lo")) l.unsupported();
  l.emit(for_unsigned(type, []<typename T>() -> Handler { return &ternary_op<T, MadLo>; }));
}

void lower_div(Lowering& l) {
  const Type type = l.take_type();
  if (is_float(type)) return lower_float_arithmetic(l, type);
  l.binary(type);
  const Handler handler = for_integer(type, []<typename T>() -> Handler { return &binary_op<T, Div>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

void lower_rem(Lowering& l) {
  const Type type = l.take_type();
  l.binary(type);
  const Handler handler = for_integer(type, []<typename T>() -> Handler { return &binary_op<T, Rem>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

template <typename Op>
void lower_min_max(Lowering& l) {
  const Type type = l.take_type();
  if (is_float(type)) return lower_float_arithmetic(l, type);
  l.binary(type);
  const bool packed = type == Type::u16x2 || type == Type::s16x2;
  if (l.take("relu")) {
    if (type == Type::s32) return l.emit(&binary_op<i32, Relu<Op>>);
    if (type == Type::s16x2) return l.emit(&binary_op<u32, Pair<i16, Relu<Op>>>);
    l.unsupported();
  }
  const Handler handler = packed
                              ? packed_handler<Op>(type)
                              : for_integer(type, []<typename T>() -> Handler { return &binary_op<T, Op>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

template <typename Op>
void lower_abs_neg(Lowering& l) {
  const Type type = l.take_type();
  if (is_float(type)) return lower_float_arithmetic(l, type);
  l.unary(type);
  switch (type) {
    case Type::s16:
      return l.emit(&unary_op<i16, Op>);
    case Type::s32:
      return l.emit(&unary_op<i32, Op>);
    case Type::s64:
      return l.emit(&unary_op<i64, Op>);
    default:
      l.unsupported();
  }
}

void lower_sad(Lowering& l) {
  const Type type = l.take_type();
  l.ternary(type);
  const Handler handler = for_integer(type, []<typename T>() -> Handler { return &ternary_op<T, Sad>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

void lower_mul24(Lowering& l) {
  const Type type = l.take_type();
  if (type != Type::u32 && type != Type::s32) l.unsupported();
  const bool high = l.take("hi");
  if (!high && !l.take("lo")) l.unsupported();
  if (l.opcode() == "mul24") {
    l.binary(type);
    if (type == Type::u32) return l.emit(high ? &binary_op<u32, Mul24Hi> : &binary_op<u32, Mul24Lo>);
    return l.emit(high ? &binary_op<i32, Mul24Hi> : &binary_op<i32, Mul24Lo>);
  }
  l.ternary(type);
  if (type == Type::u32) return l.emit(high ? &ternary_op<u32, Mad24Hi> : &ternary_op<u32, Mad24Lo>);
  l.emit(high ? &ternary_op<i32, Mad24Hi> : &ternary_op<i32, Mad24Lo>);
}

// add with .cc belongs to the wide family.
void add_carry_or_plain(Lowering& l) {
  if (l.has("cc")) return lower_with_carry(l);
  if (l.opcode() == "add") return lower_add_sub<Add, AddSat>(l);
  if (l.opcode() == "sub") return lower_add_sub<Sub, SubSat>(l);
  lower_mad(l);
}

}  // namespace

void add_integer_opcodes(OpcodeTable& table) {
  table["add"] = &add_carry_or_plain;
  table["sub"] = &add_carry_or_plain;
  table["mad"] = &add_carry_or_plain;
  table["mul"] = &lower_mul;
  table["div"] = &lower_div;
  table["rem"] = &lower_rem;
  table["min"] = &lower_min_max<Min>;
  table["max"] = &lower_min_max<Max>;
  table["abs"] = &lower_abs_neg<Abs>;
  table["neg"] = &lower_abs_neg<Neg>;
  table["sad"] = &lower_sad;
  table["mul24"] = &lower_mul24;
  table["mad24"] = &lower_mul24;
}

}  // namespace gpupool::softgpu::engine
