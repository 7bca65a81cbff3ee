// Arithmetic in several words: the carry flag is one bit a lane, a predicate row that each function keeps for
// itself (the flag does not survive calls, PTX ISA 9.0, 9.7.2).
#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

enum CarryFlag : u32 { kReadsCarry = 1 << 8, kWritesCarry = 1 << 9, kSubtracts = 1 << 10, kHigh = 1 << 11 };

// d = a + b + carry, or a - b - borrow; e is the carry row. A subtraction adds the complement, so that its
// carry is the borrow's opposite: measured on an H100, and visible when additions and subtractions are
// chained.
template <typename T>
void add_carry(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const bool subtract = (i.flags & kSubtracts) != 0;
  const u32 carry = (i.flags & kReadsCarry) != 0 ? x.predicate(i.e) : subtract ? ~0u : 0;
  u32 out = 0;
  each_lane(x.mask, [&](u32 lane) {
    T sum = 0;
    const T second_operand = subtract ? static_cast<T>(~b[lane]) : b[lane];
    const bool first = __builtin_add_overflow(a[lane], second_operand, &sum);
    const bool second = __builtin_add_overflow(sum, static_cast<T>(carry >> lane & 1), &sum);
    d[lane] = sum;
    out |= static_cast<u32>(first || second) << lane;
  });
  if ((i.flags & kWritesCarry) != 0) x.set_predicate(i.e, out);
}

// d = low or high half of a * b, + c + carry.
template <typename T, typename Wide>
void mad_carry(Lanes& x, const Inst& i) {
  using U = std::make_unsigned_t<T>;
  U* d = x.out<U>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const U* c = x.in<U>(i.c);
  const u32 carry = (i.flags & kReadsCarry) != 0 ? x.predicate(i.e) : 0;
  const u32 shift = (i.flags & kHigh) != 0 ? sizeof(T) * 8 : 0;
  u32 out = 0;
  each_lane(x.mask, [&](u32 lane) {
    const U product = static_cast<U>((static_cast<Wide>(a[lane]) * static_cast<Wide>(b[lane])) >> shift);
    U sum = 0;
    const bool first = __builtin_add_overflow(product, c[lane], &sum);
    const bool second = __builtin_add_overflow(sum, static_cast<U>(carry >> lane & 1), &sum);
    d[lane] = sum;
    out |= static_cast<u32>(first || second) << lane;
  });
  if ((i.flags & kWritesCarry) != 0) x.set_predicate(i.e, out);
}

}  // namespace

void lower_with_carry(Lowering& l) {
  const std::string_view opcode = l.opcode();
  const Type type = l.take_type();
  if (type != Type::u32 && type != Type::s32 && type != Type::u64 && type != Type::s64) l.unsupported();
  if (opcode.back() == 'c') l.inst.flags |= kReadsCarry;
  if (l.take("cc")) l.inst.flags |= kWritesCarry;
  l.inst.e = l.parser().carry_register();
  if (opcode.starts_with("mad")) {
    if (l.take("hi"))
      l.inst.flags |= kHigh;
    else if (!l.take("lo"))
      l.unsupported();
    l.ternary(type);
    switch (type) {
      case Type::u32:
        return l.emit(&mad_carry<u32, u64>);
      case Type::s32:
        return l.emit(&mad_carry<i32, i64>);
      case Type::u64:
        return l.emit(&mad_carry<u64, unsigned __int128>);
      default:
        return l.emit(&mad_carry<i64, __int128>);
    }
  }
  if (opcode.starts_with("sub")) l.inst.flags |= kSubtracts;
  l.binary(type);
  l.emit(type_bytes(type) == 4 ? &add_carry<u32> : &add_carry<u64>);
}

void add_wide_opcodes(OpcodeTable& table) {
  table["addc"] = &lower_with_carry;
  table["subc"] = &lower_with_carry;
  table["madc"] = &lower_with_carry;
}

}  // namespace gpupool::softgpu::engine
