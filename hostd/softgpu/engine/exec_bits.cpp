// Bits: and, or, xor, not, cnot, lop3, shl, shr, shf, bfe, bfi, bfind, brev, clz, popc.
#include <algorithm>
#include <bit>

#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

struct And {
  template <typename T>
  static T of(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <typename T>
  static T of(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <typename T>
  static T of(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <typename T>
  static T of(T a) {
    return static_cast<T>(~a);
  }
};
struct Cnot {
  template <typename T>
  static T of(T a) {
    return a == 0 ? T(1) : T(0);
  }
};

enum PredicateFlag : u32 { kFirstNegated = 1 << 8, kSecondNegated = 1 << 9 };

template <typename Op>
void predicate_op(Lanes& x, const Inst& i) {
  u32 a = x.predicate(i.a);
  u32 b = x.predicate(i.b);
  if ((i.flags & kFirstNegated) != 0) a = ~a;
  if ((i.flags & kSecondNegated) != 0) b = ~b;
  x.set_predicate(i.d, Op::of(a, b));
}

void predicate_not(Lanes& x, const Inst& i) {
  x.set_predicate(i.d, ~x.predicate(i.a));
}

template <typename Op>
void lower_logic(Lowering& l) {
  const Type type = l.take_type();
  if (type == Type::pred) {
    l.expect_count(3);
    l.inst.d = l.predicate_destination(l.operand(0));
    l.inst.a = l.predicate(l.operand(1));
    l.inst.b = l.predicate(l.operand(2));
    if (l.operand(1).negated) l.inst.flags |= kFirstNegated;
    if (l.operand(2).negated) l.inst.flags |= kSecondNegated;
    return l.emit(&predicate_op<Op>);
  }
  if (!is_bits(type)) l.unsupported();
  l.binary(type);
  const Handler handler = for_unsigned(type, []<typename T>() -> Handler { return &binary_op<T, Op>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

template <typename Op>
void lower_not(Lowering& l) {
  const Type type = l.take_type();
  if (type == Type::pred && std::is_same_v<Op, Not>) {
    l.expect_count(2);
    l.inst.d = l.predicate_destination(l.operand(0));
    l.inst.a = l.predicate(l.operand(1));
    if (l.operand(1).negated) l.unsupported();
    return l.emit(&predicate_not);
  }
  if (!is_bits(type)) l.unsupported();
  l.unary(type);
  const Handler handler = for_unsigned(type, []<typename T>() -> Handler { return &unary_op<T, Op>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

// imm: the truth table. Evaluated as a sum of the minterms that it contains.
void lop3(Lanes& x, const Inst& i) {
  const u32* a = x.in<u32>(i.a);
  const u32* b = x.in<u32>(i.b);
  const u32* c = x.in<u32>(i.c);
  u32* d = x.out<u32>(i.d);
  u32 term[8];
  for (u32 bit = 0; bit < 8; ++bit) term[bit] = (i.imm >> bit & 1) != 0 ? ~0u : 0;
  each_lane(x.mask, [=](u32 lane) {
    const u32 p = a[lane];
    const u32 q = b[lane];
    const u32 r = c[lane];
    const u32 low = (~q & ((~r & term[0]) | (r & term[1]))) | (q & ((~r & term[2]) | (r & term[3])));
    const u32 high = (~q & ((~r & term[4]) | (r & term[5]))) | (q & ((~r & term[6]) | (r & term[7])));
    d[lane] = (~p & low) | (p & high);
  });
}

void lower_lop3(Lowering& l) {
  if (l.take_type() != Type::b32) l.unsupported();
  l.expect_count(5);
  l.inst.d = l.destination(0, Type::b32);
  l.inst.a = l.source(1, Type::b32);
  l.inst.b = l.source(2, Type::b32);
  l.inst.c = l.source(3, Type::b32);
  l.inst.imm = l.immediate(4);
  if (l.inst.imm > 255) l.fail("truth table beyond 8 bits");
  l.emit(&lop3);
}

// Shifts: the amount is u32 whatever the type; amounts beyond the width shift everything out.
template <typename T>
void shift_left(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const u32* b = x.in<u32>(i.b);
  constexpr u32 bits = sizeof(T) * 8;
  each_lane(x.mask, [=](u32 lane) {
    const u32 amount = b[lane];
    d[lane] = amount < bits ? static_cast<T>(a[lane] << (amount & (bits - 1))) : T(0);
  });
}

template <typename T>
void shift_right(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const u32* b = x.in<u32>(i.b);
  constexpr u32 bits = sizeof(T) * 8;
  each_lane(x.mask, [=](u32 lane) {
    const u32 amount = b[lane];
    if constexpr (std::is_signed_v<T>)
      d[lane] = static_cast<T>(a[lane] >> (amount < bits ? amount : bits - 1));
    else
      d[lane] = amount < bits ? static_cast<T>(a[lane] >> (amount & (bits - 1))) : T(0);
  });
}

void lower_shift(Lowering& l) {
  const Type type = l.take_type();
  l.expect_count(3);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, Type::u32);
  Handler handler = nullptr;
  if (l.opcode() == "shl") {
    if (!is_bits(type)) l.unsupported();
    handler = for_unsigned(type, []<typename T>() -> Handler { return &shift_left<T>; });
  } else if (is_bits(type)) {
    handler = for_unsigned(type, []<typename T>() -> Handler { return &shift_right<T>; });
  } else {
    handler = for_integer(type, []<typename T>() -> Handler { return &shift_right<T>; });
  }
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

// b:a as 64 bits; left takes the upper half of the shifted value, right the lower.
template <bool kLeft, bool kClamp>
struct Funnel {
  static u32 of(u32 a, u32 b, u32 c) {
    const u32 amount = kClamp ? (c < 32 ? c : 32) : c & 31;
    const u64 both = static_cast<u64>(b) << 32 | a;
    return static_cast<u32>(kLeft ? (both << amount) >> 32 : both >> amount);
  }
};

void lower_shf(Lowering& l) {
  const bool left = l.take("l");
  if (!left && !l.take("r")) l.unsupported();
  const bool clamp = l.take("clamp");
  if (!clamp && !l.take("wrap")) l.unsupported();
  if (l.take_type() != Type::b32) l.unsupported();
  l.ternary(Type::b32);
  if (left)
    return l.emit(clamp ? &ternary_op<u32, Funnel<true, true>> : &ternary_op<u32, Funnel<true, false>>);
  l.emit(clamp ? &ternary_op<u32, Funnel<false, true>> : &ternary_op<u32, Funnel<false, false>>);
}

// Positions and lengths beyond 255 are outside the ISA. An H100 takes their low byte in 32-bit fields, and
// the whole number in 64-bit ones.
template <typename T>
u32 field_limit(u32 value) {
  return sizeof(T) == 4 ? value & 255 : std::min(value, 255u);
}

// PTX ISA 9.0, 9.7.1.20: the sign comes from the field's last bit, or from the top bit when the field leaves
// the register.
template <typename T>
T extract(T a, u32 position, u32 length) {
  using U = std::make_unsigned_t<T>;
  constexpr u32 bits = sizeof(T) * 8;
  position = field_limit<T>(position);
  length = field_limit<T>(length);
  U sign = 0;
  if constexpr (std::is_signed_v<T>) {
    if (length != 0) sign = static_cast<U>(a) >> std::min(position + length - 1, bits - 1) & 1;
  }
  const U shifted = position < bits ? static_cast<U>(static_cast<U>(a) >> position) : U(0);
  const u32 kept = position < bits ? std::min(length, bits - position) : 0;
  const U mask = kept >= bits ? static_cast<U>(~U(0)) : static_cast<U>((U(1) << kept) - 1);
  return static_cast<T>((shifted & mask) | (sign != 0 ? static_cast<U>(~mask) : U(0)));
}

template <typename T>
void bit_extract(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const u32* b = x.in<u32>(i.b);
  const u32* c = x.in<u32>(i.c);
  each_lane(x.mask, [=](u32 lane) { d[lane] = extract<T>(a[lane], b[lane], c[lane]); });
}

void lower_bfe(Lowering& l) {
  const Type type = l.take_type();
  if (type_bytes(type) < 4) l.unsupported();
  l.expect_count(4);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, Type::u32);
  l.inst.c = l.source(3, Type::u32);
  const Handler handler = for_integer(type, []<typename T>() -> Handler { return &bit_extract<T>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

// d = b with a's low bits at position c, length from the list.
template <typename T>
void bit_insert(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const u32* c = x.in<u32>(i.c);
  const u32* lengths = x.in<u32>(x.launch->program->lists[i.list]);
  constexpr u32 bits = sizeof(T) * 8;
  each_lane(x.mask, [=](u32 lane) {
    const u32 position = field_limit<T>(c[lane]);
    const u32 length = field_limit<T>(lengths[lane]);
    const T ones = length >= bits ? static_cast<T>(~T(0)) : static_cast<T>((T(1) << length) - 1);
    const T field = position < bits ? static_cast<T>(ones << position) : T(0);
    const T value = position < bits ? static_cast<T>(a[lane] << position) : T(0);
    d[lane] = (b[lane] & ~field) | (value & field);
  });
}

void lower_bfi(Lowering& l) {
  const Type type = l.take_type();
  if (type != Type::b32 && type != Type::b64) l.unsupported();
  l.expect_count(5);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, type);
  l.inst.c = l.source(3, Type::u32);
  l.inst.list = l.add_list({l.source(4, Type::u32)});
  l.emit(type == Type::b32 ? &bit_insert<u32> : &bit_insert<u64>);
}

// Results are u32 whatever the source.
template <typename T, typename Op>
void count_bits(Lanes& x, const Inst& i) {
  u32* d = x.out<u32>(i.d);
  const T* a = x.in<T>(i.a);
  each_lane(x.mask, [=](u32 lane) { d[lane] = Op::of(a[lane]); });
}
struct Popc {
  template <typename T>
  static u32 of(T a) {
    return static_cast<u32>(std::popcount(a));
  }
};
struct Clz {
  template <typename T>
  static u32 of(T a) {
    return static_cast<u32>(std::countl_zero(a));
  }
};
// The highest bit that differs from the sign.
template <bool kShift>
struct Find {
  template <typename T>
  static u32 of(T a) {
    using U = std::make_unsigned_t<T>;
    const U value = static_cast<U>(std::is_signed_v<T> && a < 0 ? ~a : a);
    if (value == 0) return ~0u;
    const u32 zeros = static_cast<u32>(std::countl_zero(value));
    return kShift ? zeros : static_cast<u32>(sizeof(T) * 8 - 1) - zeros;
  }
};

void lower_count(Lowering& l) {
  const Type type = l.take_type();
  l.expect_count(2);
  l.inst.d = l.destination(0, Type::u32);
  l.inst.a = l.source(1, type);
  if (l.opcode() == "bfind") {
    const bool shift = l.take("shiftamt");
    if (type_bytes(type) < 4) l.unsupported();
    const Handler handler = for_integer(type, [shift]<typename T>() -> Handler {
      return shift ? &count_bits<T, Find<true>> : &count_bits<T, Find<false>>;
    });
    if (handler == nullptr) l.unsupported();
    return l.emit(handler);
  }
  if (type != Type::b32 && type != Type::b64) l.unsupported();
  const bool wide = type == Type::b64;
  if (l.opcode() == "popc") return l.emit(wide ? &count_bits<u64, Popc> : &count_bits<u32, Popc>);
  l.emit(wide ? &count_bits<u64, Clz> : &count_bits<u32, Clz>);
}

struct Reverse {
  template <typename T>
  static T of(T a) {
    T result = 0;
    for (u32 bit = 0; bit < sizeof(T) * 8; ++bit)
      result |= static_cast<T>((a >> bit & 1) << (sizeof(T) * 8 - 1 - bit));
    return result;
  }
};

void lower_brev(Lowering& l) {
  const Type type = l.take_type();
  if (type != Type::b32 && type != Type::b64) l.unsupported();
  l.unary(type);
  l.emit(type == Type::b32 ? &unary_op<u32, Reverse> : &unary_op<u64, Reverse>);
}

}  // namespace

void add_bit_opcodes(OpcodeTable& table) {
  table["and"] = &lower_logic<And>;
  table["or"] = &lower_logic<Or>;
  table["xor"] = &lower_logic<Xor>;
  table["not"] = &lower_not<Not>;
  table["cnot"] = &lower_not<Cnot>;
  table["lop3"] = &lower_lop3;
  table["shl"] = &lower_shift;
  table["shr"] = &lower_shift;
  table["shf"] = &lower_shf;
  table["bfe"] = &lower_bfe;
  table["bfi"] = &lower_bfi;
  table["bfind"] = &lower_count;
  table["popc"] = &lower_count;
  table["clz"] = &lower_count;
  table["brev"] = &lower_brev;
}

}  // namespace gpupool::softgpu::engine
