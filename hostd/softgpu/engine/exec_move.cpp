// mov, selp, slct: values from one register to another, symbols' addresses, packing and unpacking.
#include <time.h>

#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

struct Copy {
  template <typename T>
  static T of(T a) {
    return a;
  }
};
struct Sum {
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(a + b);
  }
};

void move_wide(Lanes& x, const Inst& i) {
  u64* d = x.out<u64>(i.d);
  const u64* a = x.in<u64>(i.a);
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    d[2 * lane] = a[2 * lane];
    d[2 * lane + 1] = a[2 * lane + 1];
  }
}

void move_predicate(Lanes& x, const Inst& i) {
  const u32 bits = x.predicate(i.a);
  x.set_predicate(i.d, (i.flags & kSourceNegated) != 0 ? ~bits : bits);
}

Handler copy_handler(u32 bytes) {
  switch (bytes) {
    case 2:
      return &unary_op<u16, Copy>;
    case 4:
      return &unary_op<u32, Copy>;
    case 8:
      return &unary_op<u64, Copy>;
    case 16:
      return &move_wide;
    default:
      return nullptr;
  }
}

// imm: number of parts; the list: their registers. P: a part, W: the whole.
template <typename W, typename P>
void pack(Lanes& x, const Inst& i) {
  const Place* places = x.launch->program->lists.data() + i.list;
  W* d = x.out<W>(i.d);
  W whole[kWarpLanes] = {};
  for (u32 part = 0; part < sizeof(W) / sizeof(P); ++part) {
    const P* a = x.in<P>(places[part]);
    for (u32 lane = 0; lane < kWarpLanes; ++lane)
      whole[lane] |= static_cast<W>(static_cast<W>(a[lane]) << (part * sizeof(P) * 8));
  }
  each_lane(x.mask, [&](u32 lane) { d[lane] = whole[lane]; });
}

template <typename W, typename P>
void unpack(Lanes& x, const Inst& i) {
  const Place* places = x.launch->program->lists.data() + i.list;
  W whole[kWarpLanes];
  const W* a = x.in<W>(i.a);
  for (u32 lane = 0; lane < kWarpLanes; ++lane) whole[lane] = a[lane];
  for (u32 part = 0; part < sizeof(W) / sizeof(P); ++part) {
    P* d = x.out<P>(places[part]);
    each_lane(x.mask, [&](u32 lane) { d[lane] = static_cast<P>(whole[lane] >> (part * sizeof(P) * 8)); });
  }
}

Handler pack_handler(u32 whole, u32 part, bool packs) {
  if (whole == 4 && part == 2) return packs ? &pack<u32, u16> : &unpack<u32, u16>;
  if (whole == 8 && part == 2) return packs ? &pack<u64, u16> : &unpack<u64, u16>;
  if (whole == 8 && part == 4) return packs ? &pack<u64, u32> : &unpack<u64, u32>;
  if (whole == 16 && part == 8)
    return packs ? &pack<unsigned __int128, u64> : &unpack<unsigned __int128, u64>;
  if (whole == 16 && part == 4)
    return packs ? &pack<unsigned __int128, u32> : &unpack<unsigned __int128, u32>;
  return nullptr;
}

Type bits_of(u32 bytes) {
  switch (bytes) {
    case 2:
      return Type::b16;
    case 4:
      return Type::b32;
    case 8:
      return Type::b64;
    case 16:
      return Type::b128;
    default:
      return Type::none;
  }
}

void lower_pack(Lowering& l, Type type) {
  const bool packs = l.operand(1).kind == OperandKind::vector;
  const Operand& vector = l.operand(packs ? 1 : 0);
  if (packs && l.operand(0).kind == OperandKind::vector) l.unsupported();
  const u32 parts = static_cast<u32>(vector.parts.size());
  const u32 bytes = type_bytes(type);
  if (parts == 0 || bytes % parts != 0) l.fail("vector operand of the wrong length");
  const Type part_type = bits_of(bytes / parts);
  const Handler handler = pack_handler(bytes, bytes / parts, packs);
  if (handler == nullptr) l.unsupported();
  std::vector<Place> places;
  for (const Operand& part : vector.parts)
    places.push_back(packs ? l.source(part, part_type) : l.destination(part, part_type));
  l.inst.list = l.add_list(places);
  if (packs)
    l.inst.d = l.destination(0, type);
  else
    l.inst.a = l.source(1, type);
  l.emit(handler);
}

u64 now_ns(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<u64>(time.tv_sec) * 1'000'000'000ull + static_cast<u64>(time.tv_nsec);
}

// imm: bits to drop. %clock counts nanoseconds here: a processor of 1 GHz.
template <typename T, clockid_t kClock>
void read_clock(Lanes& x, const Inst& i) {
  const T value = static_cast<T>(now_ns(kClock) >> i.imm);
  T* d = x.out<T>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = value; });
  if (x.patience > kSpinPatience) x.patience = kSpinPatience;
}

bool lower_clock(Lowering& l, Type type, std::string_view name) {
  const u32 bytes = type_bytes(type);
  const bool timer = name.starts_with("%globaltimer");
  const bool wide = name == "%clock64" || name == "%globaltimer";
  if (!timer && !name.starts_with("%clock")) return false;
  if (bytes != (wide ? 8u : 4u)) l.fail("register has another size");
  if (name.ends_with("_hi")) l.inst.imm = 32;
  l.inst.d = l.destination(0, type);
  if (wide)
    l.emit(timer ? &read_clock<u64, CLOCK_REALTIME> : &read_clock<u64, CLOCK_MONOTONIC>);
  else
    l.emit(timer ? &read_clock<u32, CLOCK_REALTIME> : &read_clock<u32, CLOCK_MONOTONIC>);
  return true;
}

void lower_shared_address(Lowering& l, const Operand& operand, u32 bytes) {
  const Place base = l.symbol_address(operand, bytes);
  l.inst.a = base;
  if (operand.offset == 0) return l.emit(copy_handler(bytes));
  l.inst.b = l.program().constant_row(static_cast<u64>(operand.offset), bytes);
  l.emit(bytes == 4 ? &binary_op<u32, Sum> : &binary_op<u64, Sum>);
}

void lower_mov(Lowering& l) {
  const Type type = l.take_type();
  l.expect_count(2);
  if (type == Type::pred) {
    l.inst.d = l.predicate_destination(l.operand(0));
    l.inst.a = l.predicate(l.operand(1));
    if (l.operand(1).negated) l.inst.flags |= kSourceNegated;
    return l.emit(&move_predicate);
  }
  const Operand& source = l.operand(1);
  if (source.kind == OperandKind::vector || l.operand(0).kind == OperandKind::vector)
    return lower_pack(l, type);
  if (source.kind == OperandKind::name) {
    if (lower_clock(l, type, source.name)) return;
    l.fail("unknown operand '" + std::string(source.name) + "'");
  }
  l.inst.d = l.destination(0, type);
  if (source.kind == OperandKind::symbol || source.kind == OperandKind::function)
    return lower_shared_address(l, source, type_bytes(type));
  l.inst.a = l.source(1, type);
  const Handler handler = copy_handler(type_bytes(type));
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

template <typename T>
void select(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  u32 bits = x.predicate(i.c);
  if ((i.flags & kSourceNegated) != 0) bits = ~bits;
  each_lane(x.mask, [=](u32 lane) { d[lane] = (bits >> lane & 1) != 0 ? a[lane] : b[lane]; });
}

void lower_selp(Lowering& l) {
  const Type type = l.take_type();
  l.expect_count(4);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, type);
  l.inst.c = l.predicate(l.operand(3));
  if (l.operand(3).negated) l.inst.flags |= kSourceNegated;
  const Handler handler = for_unsigned(type, []<typename T>() -> Handler { return &select<T>; });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

struct SignOf {
  template <typename C>
  static bool of(C c) {
    return c >= 0;
  }
};
// A negative subnormal number counts as -0, which is not less than 0.
struct SignOfFlushed {
  static bool of(float c) { return c > -0x1p-126f; }
};

// d = c >= 0 ? a : b
template <typename T, typename C, typename Sign>
void select_by_sign(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const C* c = x.in<C>(i.c);
  each_lane(x.mask, [=](u32 lane) { d[lane] = Sign::of(c[lane]) ? a[lane] : b[lane]; });
}

void lower_slct(Lowering& l) {
  const bool flush = l.take("ftz");
  const Type type = l.take_type();
  const Type by = l.take_type();
  l.expect_count(4);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, type);
  l.inst.c = l.source(3, by);
  const Handler handler = for_unsigned(type, [&]<typename T>() -> Handler {
    if (by == Type::s32 && !flush) return &select_by_sign<T, i32, SignOf>;
    if (by != Type::f32) return nullptr;
    return flush ? &select_by_sign<T, float, SignOfFlushed> : &select_by_sign<T, float, SignOf>;
  });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

}  // namespace

Place Lowering::symbol_address(const Operand& operand, u32 bytes) {
  if (bytes != 4 && bytes != 8) fail("an address has 32 or 64 bits");
  if (operand.kind == OperandKind::function) {
    program().functions[operand.index].address_taken = true;
    return program().constant_row(kCodeWindow + 16ull * operand.index, bytes);
  }
  const Variable& variable = program().variables[operand.index];
  switch (variable.space) {
    case Space::shared:
      return parser_.initial_register(Initial::shared_variable, bytes, operand.index);
    case Space::local:
      return program().local_row(parser_.function_index(), static_cast<i64>(variable.offset), bytes);
    case Space::param:
      return program().constant_row(variable.offset, bytes);
    default:
      return program().address_row(operand.index, 0, bytes);
  }
}

void add_move_opcodes(OpcodeTable& table) {
  table["mov"] = &lower_mov;
  table["selp"] = &lower_selp;
  table["slct"] = &lower_slct;
}

}  // namespace gpupool::softgpu::engine
