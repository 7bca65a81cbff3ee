// atom and red. Every memory is treated the same: other CPU threads may run blocks of this grid. Lanes go one
// after the other, in lane order. Operations on the CPU are sequentially consistent, which covers every .sem
// and .scope.
#include <cstring>

#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/memory.hpp"
#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

struct Add {
  template <typename T>
  static T of(T old, T value) {
    return static_cast<T>(old + value);
  }
};
struct Exchange {
  template <typename T>
  static T of(T, T value) {
    return value;
  }
};
struct Min {
  template <typename T>
  static T of(T old, T value) {
    return value < old ? value : old;
  }
};
struct Max {
  template <typename T>
  static T of(T old, T value) {
    return old < value ? value : old;
  }
};
struct And {
  template <typename T>
  static T of(T old, T value) {
    return old & value;
  }
};
struct Or {
  template <typename T>
  static T of(T old, T value) {
    return old | value;
  }
};
struct Xor {
  template <typename T>
  static T of(T old, T value) {
    return old ^ value;
  }
};
struct Increment {
  static u32 of(u32 old, u32 limit) { return old >= limit ? 0 : old + 1; }
};
struct Decrement {
  static u32 of(u32 old, u32 limit) { return old == 0 || old > limit ? limit : old - 1; }
};
struct AddFloat {
  static u32 of(u32 old, u32 value) {
    return std::bit_cast<u32>(std::bit_cast<float>(old) + std::bit_cast<float>(value));
  }
};
struct AddDouble {
  static u64 of(u64 old, u64 value) {
    return std::bit_cast<u64>(std::bit_cast<double>(old) + std::bit_cast<double>(value));
  }
};
struct AddHalf {
  static u16 of(u16 old, u16 value) {
    return half_from_double(static_cast<double>(float_from_half(old)) +
                            static_cast<double>(float_from_half(value)));
  }
};
struct AddBfloat {
  static u16 of(u16 old, u16 value) {
    return bfloat_from_double(fused_to_odd(static_cast<double>(float_from_bfloat(old)), 1.0,
                                           static_cast<double>(float_from_bfloat(value))));
  }
};
template <typename Op>
struct Pair {
  static u32 of(u32 old, u32 value) {
    const u32 low = Op::of(static_cast<u16>(old), static_cast<u16>(value));
    const u32 high = Op::of(static_cast<u16>(old >> 16), static_cast<u16>(value >> 16));
    return high << 16 | low;
  }
};

template <typename T, typename Op>
T update(u8* at, T value) {
  T* word = reinterpret_cast<T*>(at);
  T old = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &old, Op::of(old, value), true, __ATOMIC_SEQ_CST,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}

// d = old value at [a]; b: operand. Without d it is a red.
template <Space kSpace, typename T, typename Op>
void atomic_op(Lanes& x, const Inst& i) {
  Pointers pointers;
  locate<kSpace>(x, i, sizeof(T), pointers);
  if (x.patience > kSpinPatience) x.patience = kSpinPatience;
  const T* b = x.in<T>(i.b);
  T* d = i.d == kNoPlace ? nullptr : x.out<T>(i.d);
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    const T old = update<T, Op>(pointers[lane], b[lane]);
    if (d != nullptr) d[lane] = old;
  }
}

// b: the value to compare with, c: the new one.
template <Space kSpace, typename T>
void compare_and_swap(Lanes& x, const Inst& i) {
  Pointers pointers;
  locate<kSpace>(x, i, sizeof(T), pointers);
  if (x.patience > kSpinPatience) x.patience = kSpinPatience;
  const T* b = x.in<T>(i.b);
  const T* c = x.in<T>(i.c);
  T* d = x.out<T>(i.d);
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    T old = b[lane];
    __atomic_compare_exchange_n(reinterpret_cast<T*>(pointers[lane]), &old, c[lane], false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
    d[lane] = old;
  }
}

template <typename T, typename Op>
Handler in_space(Space space) {
  switch (space) {
    case Space::global:
      return &atomic_op<Space::global, T, Op>;
    case Space::shared:
      return &atomic_op<Space::shared, T, Op>;
    case Space::generic:
      return &atomic_op<Space::generic, T, Op>;
    default:
      return nullptr;
  }
}

template <typename T>
Handler cas_in_space(Space space) {
  switch (space) {
    case Space::global:
      return &compare_and_swap<Space::global, T>;
    case Space::shared:
      return &compare_and_swap<Space::shared, T>;
    case Space::generic:
      return &compare_and_swap<Space::generic, T>;
    default:
      return nullptr;
  }
}

Handler add_handler(Type type, Space space) {
  switch (type) {
    case Type::u32:
    case Type::s32:
      return in_space<u32, Add>(space);
    case Type::u64:
    case Type::s64:
      return in_space<u64, Add>(space);
    case Type::f32:
      return in_space<u32, AddFloat>(space);
    case Type::f64:
      return in_space<u64, AddDouble>(space);
    case Type::f16:
      return in_space<u16, AddHalf>(space);
    case Type::bf16:
      return in_space<u16, AddBfloat>(space);
    case Type::f16x2:
      return in_space<u32, Pair<AddHalf>>(space);
    case Type::bf16x2:
      return in_space<u32, Pair<AddBfloat>>(space);
    default:
      return nullptr;
  }
}

template <typename Op>
Handler ordered_handler(Type type, Space space) {
  switch (type) {
    case Type::u32:
      return in_space<u32, Op>(space);
    case Type::s32:
      return in_space<i32, Op>(space);
    case Type::u64:
      return in_space<u64, Op>(space);
    case Type::s64:
      return in_space<i64, Op>(space);
    default:
      return nullptr;
  }
}

template <typename Op>
Handler bits_handler(Type type, Space space) {
  if (!is_bits(type)) return nullptr;
  if (type_bytes(type) == 4) return in_space<u32, Op>(space);
  return type_bytes(type) == 8 ? in_space<u64, Op>(space) : nullptr;
}

Handler take_operation(Lowering& l, Type type, Space space) {
  if (l.take("add")) {
    const bool needs_no_flush =
        type == Type::f16 || type == Type::bf16 || type == Type::f16x2 || type == Type::bf16x2;
    if (l.take("noftz") != needs_no_flush) return nullptr;
    return add_handler(type, space);
  }
  if (l.take("exch")) return bits_handler<Exchange>(type, space);
  if (l.take("min")) return ordered_handler<Min>(type, space);
  if (l.take("max")) return ordered_handler<Max>(type, space);
  if (l.take("and")) return bits_handler<And>(type, space);
  if (l.take("or")) return bits_handler<Or>(type, space);
  if (l.take("xor")) return bits_handler<Xor>(type, space);
  if (l.take("inc")) return type == Type::u32 ? in_space<u32, Increment>(space) : nullptr;
  if (l.take("dec")) return type == Type::u32 ? in_space<u32, Decrement>(space) : nullptr;
  return nullptr;
}

void lower_cas(Lowering& l, Type type, Space space, size_t operands) {
  if (!is_bits(type)) l.unsupported();
  const u32 bytes = type_bytes(type);
  const Handler handler = bytes == 2   ? cas_in_space<u16>(space)
                          : bytes == 4 ? cas_in_space<u32>(space)
                          : bytes == 8 ? cas_in_space<u64>(space)
                                       : nullptr;
  if (handler == nullptr) l.unsupported();
  l.expect_count(4 + operands);
  l.inst.d = l.destination(0, type);
  lower_address(l, l.operand(1), space);
  l.inst.b = l.source(2, type);
  l.inst.c = l.source(3, type);
  l.emit(handler);
}

void lower_atomic(Lowering& l) {
  const bool returns = l.opcode() == "atom";
  l.skip_any({"relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys"});
  const Space space = take_space(l);
  const size_t policy = l.take("L2::cache_hint") ? 1 : 0;
  const Type type = l.take_type();
  if (returns && l.take("cas")) return lower_cas(l, type, space, policy);
  const Handler handler = take_operation(l, type, space);
  if (handler == nullptr) l.unsupported();
  const size_t first = returns ? 1 : 0;
  l.expect_count(first + 2 + policy);
  if (returns) l.inst.d = l.destination(0, type);
  lower_address(l, l.operand(first), space);
  l.inst.b = l.source(first + 1, type);
  if (policy != 0) l.source(first + 2, Type::b64);
  l.emit(handler);
}

}  // namespace

void add_atomic_opcodes(OpcodeTable& table) {
  table["atom"] = &lower_atomic;
  table["red"] = &lower_atomic;
}

}  // namespace gpupool::softgpu::engine
