// setp, set, testp: comparisons.
#include <array>

#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

enum CompareFlag : u32 { kFlush = 1 << 8, kBoolShift = 9, kBoolMask = 3 << kBoolShift };
enum class BoolOp : u32 { none, logical_and, logical_or, logical_xor };

// How the operands' lanes become numbers to compare.
template <typename T>
struct Plain {
  using Stored = T;
  static T value(T stored) { return stored; }
};
struct Flushed {
  using Stored = float;
  static float value(float stored) { return flush_subnormal(stored); }
};
struct Half {
  using Stored = u16;
  static float value(u16 stored) { return float_from_half(stored); }
};
struct Bfloat {
  using Stored = u16;
  static float value(u16 stored) { return float_from_bfloat(stored); }
};
template <bool kHigh, typename Of>
struct HalfOfPair {
  using Stored = u32;
  static float value(u32 stored) { return Of::value(static_cast<u16>(stored >> (kHigh ? 16 : 0))); }
};

struct Equal {
  template <typename T>
  static bool of(T a, T b) {
    return a == b;
  }
};
struct NotEqual {  // ordered: a NaN makes it false
  template <typename T>
  static bool of(T a, T b) {
    if constexpr (std::is_floating_point_v<T>)
      return a < b || a > b;
    else
      return a != b;
  }
};
struct Less {
  template <typename T>
  static bool of(T a, T b) {
    return a < b;
  }
};
struct LessEqual {
  template <typename T>
  static bool of(T a, T b) {
    return a <= b;
  }
};
struct Greater {
  template <typename T>
  static bool of(T a, T b) {
    return a > b;
  }
};
struct GreaterEqual {
  template <typename T>
  static bool of(T a, T b) {
    return a >= b;
  }
};
struct Number {
  template <typename T>
  static bool of(T a, T b) {
    return a == a && b == b;
  }
};
template <typename Op>
struct Not {
  template <typename T>
  static bool of(T a, T b) {
    return !Op::of(a, b);
  }
};

u32 combine(u32 result, u32 other, u32 flags) {
  switch (static_cast<BoolOp>((flags & kBoolMask) >> kBoolShift)) {
    case BoolOp::logical_and:
      return result & other;
    case BoolOp::logical_or:
      return result | other;
    case BoolOp::logical_xor:
      return result ^ other;
    default:
      return result;
  }
}

template <typename From, typename Op>
u32 compare(Lanes& x, const Inst& i) {
  using T = typename From::Stored;
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  return lane_bits(x.mask, [=](u32 lane) { return Op::of(From::value(a[lane]), From::value(b[lane])); });
}

u32 third_operand(Lanes& x, const Inst& i) {
  if (i.c == kNoPlace) return 0;
  const u32 bits = x.predicate(i.c);
  return (i.flags & kSourceNegated) != 0 ? ~bits : bits;
}

template <typename From, typename Op>
void set_predicates(Lanes& x, const Inst& i) {
  const u32 result = compare<From, Op>(x, i);
  const u32 other = third_operand(x, i);
  x.set_predicate(i.d, combine(result, other, i.flags));
  if (i.e != kNoPlace) x.set_predicate(i.e, combine(~result, other, i.flags));
}

// f16x2: one predicate a half.
template <typename Of, typename Op>
void set_predicate_pair(Lanes& x, const Inst& i) {
  const u32 low = compare<HalfOfPair<false, Of>, Op>(x, i);
  const u32 high = compare<HalfOfPair<true, Of>, Op>(x, i);
  const u32 other = third_operand(x, i);
  x.set_predicate(i.d, combine(low, other, i.flags));
  if (i.e != kNoPlace) x.set_predicate(i.e, combine(high, other, i.flags));
}

// set: imm is the value for true.
template <typename From, typename Op, typename D>
void set_value(Lanes& x, const Inst& i) {
  const u32 bits = combine(compare<From, Op>(x, i), third_operand(x, i), i.flags);
  const D yes = static_cast<D>(i.imm);
  D* d = x.out<D>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = (bits >> lane & 1) != 0 ? yes : D(0); });
}

template <typename Of, typename Op>
void set_value_pair(Lanes& x, const Inst& i) {
  const u32 other = third_operand(x, i);
  const u32 low = combine(compare<HalfOfPair<false, Of>, Op>(x, i), other, i.flags);
  const u32 high = combine(compare<HalfOfPair<true, Of>, Op>(x, i), other, i.flags);
  const u32 yes = static_cast<u32>(i.imm);
  u32* d = x.out<u32>(i.d);
  each_lane(x.mask, [=](u32 lane) {
    d[lane] = ((low >> lane & 1) != 0 ? yes : 0) | ((high >> lane & 1) != 0 ? yes << 16 : 0);
  });
}

constexpr std::array<std::string_view, 18> kOperators{"eq",  "ne",  "lt",  "le",  "gt",  "ge",
                                                      "lo",  "ls",  "hi",  "hs",  "equ", "neu",
                                                      "ltu", "leu", "gtu", "geu", "num", "nan"};

template <typename F>
Handler for_operator(std::string_view op, F f) {
  if (op == "eq") return f.template operator()<Equal>();
  if (op == "ne") return f.template operator()<NotEqual>();
  if (op == "lt" || op == "lo") return f.template operator()<Less>();
  if (op == "le" || op == "ls") return f.template operator()<LessEqual>();
  if (op == "gt" || op == "hi") return f.template operator()<Greater>();
  if (op == "ge" || op == "hs") return f.template operator()<GreaterEqual>();
  // The unordered forms are true for NaN: not the opposite ordered comparison.
  if (op == "equ") return f.template operator()<Not<NotEqual>>();
  if (op == "neu") return f.template operator()<Not<Equal>>();
  if (op == "ltu") return f.template operator()<Not<GreaterEqual>>();
  if (op == "leu") return f.template operator()<Not<Greater>>();
  if (op == "gtu") return f.template operator()<Not<LessEqual>>();
  if (op == "geu") return f.template operator()<Not<Less>>();
  if (op == "num") return f.template operator()<Number>();
  return f.template operator()<Not<Number>>();
}

std::string_view take_operator(Lowering& l, Type type) {
  std::string_view result;
  for (const std::string_view name : kOperators)
    if (l.take(name)) {
      result = name;
      break;
    }
  if (result.empty()) l.unsupported();
  const bool unordered = result.size() == 3;
  const bool unsigned_only = result == "lo" || result == "ls" || result == "hi" || result == "hs";
  if (unordered && !is_float(type)) l.unsupported();
  if (unsigned_only && (is_float(type) || is_signed(type))) l.unsupported();
  if (is_bits(type) && result != "eq" && result != "ne") l.unsupported();
  return result;
}

void take_bool(Lowering& l) {
  BoolOp op = BoolOp::none;
  if (l.take("and"))
    op = BoolOp::logical_and;
  else if (l.take("or"))
    op = BoolOp::logical_or;
  else if (l.take("xor"))
    op = BoolOp::logical_xor;
  l.inst.flags |= static_cast<u32>(op) << kBoolShift;
  l.expect_count(op == BoolOp::none ? 3 : 4);
  if (op == BoolOp::none) return;
  l.inst.c = l.predicate(l.operand(3));
  if (l.operand(3).negated) l.inst.flags |= kSourceNegated;
}

// Picks f<From, Op>() for scalar types.
template <typename F>
Handler for_compare(Type type, bool flush, std::string_view op, F f) {
  const auto with = [&]<typename From>() -> Handler {
    return for_operator(op, [&]<typename Op>() -> Handler { return f.template operator()<From, Op>(); });
  };
  switch (type) {
    case Type::b16:
    case Type::u16:
      return with.template operator()<Plain<u16>>();
    case Type::b32:
    case Type::u32:
      return with.template operator()<Plain<u32>>();
    case Type::b64:
    case Type::u64:
      return with.template operator()<Plain<u64>>();
    case Type::s16:
      return with.template operator()<Plain<std::int16_t>>();
    case Type::s32:
      return with.template operator()<Plain<i32>>();
    case Type::s64:
      return with.template operator()<Plain<i64>>();
    case Type::f32:
      return flush ? with.template operator()<Flushed>() : with.template operator()<Plain<float>>();
    case Type::f64:
      return with.template operator()<Plain<double>>();
    case Type::f16:
      return with.template operator()<Half>();
    case Type::bf16:
      return with.template operator()<Bfloat>();
    default:
      return nullptr;
  }
}

bool take_flush(Lowering& l, Type type) {
  if (type == Type::f32) return l.take("ftz");
  // Flushing 16-bit subnormals would need its own comparison; refused rather than ignored.
  return false;
}

void lower_setp(Lowering& l) {
  const Type type = l.take_type();
  const std::string_view op = take_operator(l, type);
  take_bool(l);
  const bool flush = take_flush(l, type);
  const Operand& target = l.operand(0);
  const bool pair = target.kind == OperandKind::pair;
  l.inst.d = l.predicate_destination(pair ? target.parts[0] : target);
  if (pair) l.inst.e = l.predicate_destination(target.parts[1]);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, type);
  if (type == Type::f16x2)
    return l.emit(for_operator(op, []<typename Op>() -> Handler { return &set_predicate_pair<Half, Op>; }));
  if (type == Type::bf16x2)
    return l.emit(for_operator(op, []<typename Op>() -> Handler { return &set_predicate_pair<Bfloat, Op>; }));
  const Handler handler = for_compare(
      type, flush, op, []<typename From, typename Op>() -> Handler { return &set_predicates<From, Op>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

// The bits of "true" for a result type; 0 where set has no such result.
u64 true_value(Type type) {
  switch (type) {
    case Type::u16:
    case Type::s16:
      return 0xffff;
    case Type::u32:
    case Type::s32:
      return 0xffff'ffff;
    case Type::f32:
      return 0x3f80'0000;
    case Type::f16:
    case Type::f16x2:
      return 0x3c00;
    case Type::bf16:
    case Type::bf16x2:
      return 0x3f80;
    default:
      return 0;
  }
}

void lower_set(Lowering& l) {
  const Type result = l.take_type();
  const Type type = l.take_type();
  const std::string_view op = take_operator(l, type);
  take_bool(l);
  const bool flush = take_flush(l, type);
  l.inst.imm = true_value(result);
  if (l.inst.imm == 0) l.unsupported();
  l.inst.d = l.destination(0, result);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, type);
  const bool pair = type == Type::f16x2 || type == Type::bf16x2;
  if (pair && (result == type || result == Type::u32 || result == Type::s32)) {
    if (result != type) l.inst.imm = 0xffff;
    if (type == Type::f16x2)
      return l.emit(for_operator(op, []<typename Op>() -> Handler { return &set_value_pair<Half, Op>; }));
    return l.emit(for_operator(op, []<typename Op>() -> Handler { return &set_value_pair<Bfloat, Op>; }));
  }
  const bool narrow = type_bytes(result) == 2;
  const Handler handler = for_compare(type, flush, op, [&]<typename From, typename Op>() -> Handler {
    return narrow ? &set_value<From, Op, u16> : &set_value<From, Op, u32>;
  });
  if (handler == nullptr || result == Type::f16x2 || result == Type::bf16x2) l.unsupported();
  l.emit(handler);
}

enum class Test : u64 { finite, infinite, number, nan, normal, subnormal };

template <typename T>
void test_property(Lanes& x, const Inst& i) {
  const T* a = x.in<T>(i.a);
  const Test test = static_cast<Test>(i.imm);
  x.set_predicate(i.d, lane_bits(x.mask, [=](u32 lane) {
                    const int kind = std::fpclassify(a[lane]);
                    switch (test) {
                      case Test::finite:
                        return kind != FP_NAN && kind != FP_INFINITE;
                      case Test::infinite:
                        return kind == FP_INFINITE;
                      case Test::number:
                        return kind != FP_NAN;
                      case Test::nan:
                        return kind == FP_NAN;
                      case Test::normal:
                        return kind == FP_NORMAL || kind == FP_ZERO;  // PTX: zero counts as normal
                      default:
                        return kind == FP_SUBNORMAL;
                    }
                  }));
}

void lower_testp(Lowering& l) {
  constexpr std::array<std::string_view, 6> names{"finite",     "infinite", "number",
                                                  "notanumber", "normal",   "subnormal"};
  const Type type = l.take_type();
  size_t test = 0;
  while (test < names.size() && !l.take(names[test])) ++test;
  if (test == names.size() || (type != Type::f32 && type != Type::f64)) l.unsupported();
  l.expect_count(2);
  l.inst.imm = test;
  l.inst.d = l.predicate_destination(l.operand(0));
  l.inst.a = l.source(1, type);
  l.emit(type == Type::f32 ? &test_property<float> : &test_property<double>);
}

}  // namespace

void add_compare_opcodes(OpcodeTable& table) {
  table["setp"] = &lower_setp;
  table["set"] = &lower_set;
  table["testp"] = &lower_testp;
}

}  // namespace gpupool::softgpu::engine
