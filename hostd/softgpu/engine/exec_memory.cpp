// ld, st, ldu and hints that move no data. Loads and stores are single accesses of their size, so that other
// CPU threads never see half of one; on x86-64 they also have the order that acquire and release ask for.
#include <cstring>

#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/memory.hpp"

namespace gpupool::softgpu::engine {
namespace {

struct alignas(16) Wide {
  u64 low, high;
};

template <typename M>
M read(const u8* at) {
  if constexpr (sizeof(M) == 16) {
    const u64* words = reinterpret_cast<const u64*>(at);
    return {__atomic_load_n(words, __ATOMIC_RELAXED), __atomic_load_n(words + 1, __ATOMIC_RELAXED)};
  } else {
    return __atomic_load_n(reinterpret_cast<const M*>(at), __ATOMIC_RELAXED);
  }
}

template <typename M>
void write(u8* at, M value) {
  if constexpr (sizeof(M) == 16) {
    u64* words = reinterpret_cast<u64*>(at);
    __atomic_store_n(words, value.low, __ATOMIC_RELAXED);
    __atomic_store_n(words + 1, value.high, __ATOMIC_RELAXED);
  } else {
    __atomic_store_n(reinterpret_cast<M*>(at), value, __ATOMIC_RELAXED);
  }
}

// D: what a register holds; M: what memory holds.
template <Space kSpace, typename D, typename M>
void load(Lanes& x, const Inst& i) {
  const u32 shift = (i.flags & kVectorMask) >> kVectorShift;
  if ((i.flags & kSpins) != 0 && x.patience > kSpinPatience) x.patience = kSpinPatience;
  if constexpr (kSpace == Space::shared && sizeof(M) <= 8) {
    u32 offsets[kWarpLanes];
    if (shift == 0 && shared_offsets(x, i, sizeof(M), offsets)) {
      D* d = x.out<D>(i.d);
      const u8* base = x.block->shared;
      for (u32 lane = 0; lane < kWarpLanes; ++lane) d[lane] = static_cast<D>(read<M>(base + offsets[lane]));
      return;
    }
  }
  Pointers pointers;
  locate<kSpace>(x, i, static_cast<u32>(sizeof(M)) << shift, pointers);
  if (shift == 0) {
    D* d = x.out<D>(i.d);
    each_lane(x.mask, [&](u32 lane) { d[lane] = static_cast<D>(read<M>(pointers[lane])); });
    return;
  }
  const Place* places = x.launch->program->lists.data() + i.list;
  for (u32 element = 0; element < 1u << shift; ++element) {
    D* d = x.out<D>(places[element]);
    each_lane(x.mask,
              [&](u32 lane) { d[lane] = static_cast<D>(read<M>(pointers[lane] + element * sizeof(M))); });
  }
}

template <Space kSpace, typename D, typename M>
void store(Lanes& x, const Inst& i) {
  const u32 shift = (i.flags & kVectorMask) >> kVectorShift;
  if constexpr (kSpace == Space::shared && sizeof(M) <= 8) {
    u32 offsets[kWarpLanes];
    if (shift == 0 && shared_offsets(x, i, sizeof(M), offsets)) {
      const D* b = x.in<D>(i.b);
      u8* base = x.block->shared;
      for (u32 lane = 0; lane < kWarpLanes; ++lane) write<M>(base + offsets[lane], static_cast<M>(b[lane]));
      return;
    }
  }
  Pointers pointers;
  locate<kSpace>(x, i, static_cast<u32>(sizeof(M)) << shift, pointers);
  if (shift == 0) {
    const D* b = x.in<D>(i.b);
    for (u32 left = x.mask; left != 0; left &= left - 1) {
      const u32 lane = first_lane(left);
      write<M>(pointers[lane], static_cast<M>(b[lane]));
    }
    return;
  }
  const Place* places = x.launch->program->lists.data() + i.list;
  for (u32 element = 0; element < 1u << shift; ++element) {
    const D* b = x.in<D>(places[element]);
    for (u32 left = x.mask; left != 0; left &= left - 1) {
      const u32 lane = first_lane(left);
      write<M>(pointers[lane] + element * sizeof(M), static_cast<M>(b[lane]));
    }
  }
}

// A kernel parameter: the same for all lanes.
template <typename D, typename M>
void load_parameter(Lanes& x, const Inst& i) {
  M value;
  std::memcpy(&value, x.launch->parameters.data() + i.imm, sizeof(M));
  const D wide = static_cast<D>(value);
  D* d = x.out<D>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = wide; });
}

// Calls f<D, M>() for a register of `bytes` and a memory type.
template <typename F>
Handler for_pair(Type type, u32 bytes, F f) {
  using i8 = std::int8_t;
  using i16 = std::int16_t;
  switch (type_bytes(type)) {
    case 1:
      if (is_signed(type))
        return bytes == 2   ? f.template operator()<i16, i8>()
               : bytes == 4 ? f.template operator()<i32, i8>()
                            : f.template operator()<i64, i8>();
      return bytes == 2   ? f.template operator()<u16, u8>()
             : bytes == 4 ? f.template operator()<u32, u8>()
                          : f.template operator()<u64, u8>();
    case 2:
      if (bytes == 2) return f.template operator()<u16, u16>();
      if (is_signed(type))
        return bytes == 4 ? f.template operator()<i32, i16>() : f.template operator()<i64, i16>();
      return bytes == 4 ? f.template operator()<u32, u16>() : f.template operator()<u64, u16>();
    case 4:
      if (bytes == 4) return f.template operator()<u32, u32>();
      return is_signed(type) ? f.template operator()<i64, i32>() : f.template operator()<u64, u32>();
    case 8:
      return f.template operator()<u64, u64>();
    case 16:
      return f.template operator()<Wide, Wide>();
    default:
      return nullptr;
  }
}

// The registers of a scalar or vector operand; returns their size in bytes.
u32 registers(Lowering& l, const Operand& operand, Type type, bool is_load, Place& single) {
  const u32 vector = l.take("v2") ? 1 : l.take("v4") ? 2 : l.take("v8") ? 3 : 0;
  u32 bytes = 0;
  const auto one = [&](const Operand& part) {
    return is_load ? l.loose_destination(part, type, bytes) : l.loose_source(part, type, bytes);
  };
  if (type_bytes(type) << vector > 32) l.unsupported();
  if (vector == 0) {
    single = one(operand);
    return bytes;
  }
  if (operand.kind != OperandKind::vector || operand.parts.size() != 1u << vector)
    l.fail("vector operand of the wrong length");
  std::vector<Place> places;
  u32 common = 0;
  for (const Operand& part : operand.parts) {
    if (part.kind != OperandKind::reg) continue;
    one(part);
    if (common != 0 && common != bytes) l.fail("registers of different sizes in one vector");
    common = bytes;
  }
  for (const Operand& part : operand.parts) {
    if (part.kind == OperandKind::reg)
      places.push_back(one(part));
    else if (part.kind == OperandKind::sink)
      places.push_back(l.parser().new_register(common != 0 ? common : 8));
    else if (common == 0 || common == type_bytes(type))
      places.push_back(one(part));
    else
      l.fail("a constant beside wider registers");
  }
  l.inst.list = l.add_list(places);
  l.inst.flags |= vector << kVectorShift;
  return common != 0 ? common : bytes;
}

void take_order(Lowering& l) {
  if (l.take("volatile") || l.take("relaxed") || l.take("acquire") || l.take("release") || l.take("mmio")) {
    l.inst.flags |= kSpins;
    l.take("relaxed");  // mmio.relaxed
    l.skip_any({"cta", "cluster", "gpu", "sys"});
  }
  l.take("weak");
}

void lower_cache_policy(Lowering& l, size_t index) {
  if (!l.take("L2::cache_hint")) return l.expect_count(index);
  l.expect_count(index + 1);
  l.source(index, Type::b64);
}

// Where ld.param and st.param go: a kernel's parameters are in its buffer, all others in local memory.
Space parameter_space(Lowering& l, const Operand& address) {
  if (address.kind != OperandKind::address) l.fail("an address in brackets is missing");
  const Operand& base = address.parts[0];
  if (base.kind == OperandKind::symbol) return l.program().variables[base.index].space;
  return l.function().entry ? Space::param : Space::local;
}

void lower_parameter_load(Lowering& l, Type type, u32 bytes) {
  const Operand& address = l.operand(1);
  const Variable& variable = l.program().variables[address.parts[0].index];
  const u64 offset = variable.offset + static_cast<u64>(address.offset);
  if (address.offset < 0 || static_cast<u64>(address.offset) + type_bytes(type) > variable.size)
    l.fail("beyond the parameter '" + variable.name + "'");
  l.inst.imm = offset;
  l.emit(for_pair(type, bytes, []<typename D, typename M>() -> Handler { return &load_parameter<D, M>; }));
}

void lower_load(Lowering& l) {
  take_order(l);
  Space space = take_space(l);
  skip_cache_hints(l);
  lower_cache_policy(l, 2);
  const Type type = l.take_type();
  if (type == Type::pred) l.unsupported();
  const Operand& address = l.operand(1);
  if (space == Space::param) space = parameter_space(l, address);
  const u32 bytes = registers(l, l.operand(0), type, true, l.inst.d);
  if (space == Space::param && address.parts[0].kind == OperandKind::symbol &&
      (l.inst.flags & kVectorMask) == 0)
    return lower_parameter_load(l, type, bytes);
  lower_address(l, address, space);
  const Handler handler = for_space(space, [&]<Space kSpace>() {
    return for_pair(type, bytes, []<typename D, typename M>() -> Handler { return &load<kSpace, D, M>; });
  });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

void lower_store(Lowering& l) {
  take_order(l);
  Space space = take_space(l);
  skip_cache_hints(l);
  lower_cache_policy(l, 2);
  const Type type = l.take_type();
  if (type == Type::pred) l.unsupported();
  if (space == Space::param) space = parameter_space(l, l.operand(0));
  if (space == Space::param || space == Space::constant) l.unsupported();
  const u32 bytes = registers(l, l.operand(1), type, false, l.inst.b);
  lower_address(l, l.operand(0), space);
  const Handler handler = for_space(space, [&]<Space kSpace>() -> Handler {
    if constexpr (kSpace == Space::param)
      return nullptr;
    else
      return for_pair(type, bytes, []<typename D, typename M>() -> Handler { return &store<kSpace, D, M>; });
  });
  if (handler == nullptr) l.unsupported();
  l.emit(handler);
}

// Moves nothing here: the hint is checked for its form and dropped.
void lower_prefetch(Lowering& l) {
  const Space space = take_space(l);
  skip_cache_hints(l);
  l.skip_any({"L1", "L2", "tensormap"});
  l.expect_count(1, 2);
  lower_address(l, l.operand(0), space);
  l.finish_modifiers();
}

template <Space kSpace, typename U>
void to_generic(Lanes& x, const Inst& i) {
  constexpr u64 window = kSpace == Space::shared  ? kSharedWindow
                         : kSpace == Space::local ? kLocalWindow
                                                  : kParamWindow;
  u64* d = x.out<u64>(i.d);
  const U* a = x.in<U>(i.a);
  each_lane(x.mask, [=](u32 lane) { d[lane] = window | a[lane]; });
}

template <typename U>
void from_generic(Lanes& x, const Inst& i) {
  U* d = x.out<U>(i.d);
  const u64* a = x.in<u64>(i.a);
  each_lane(x.mask, [=](u32 lane) { d[lane] = static_cast<U>(a[lane] & (kWindowSpan - 1)); });
}

template <typename D, typename A>
void copy_lanes(Lanes& x, const Inst& i) {
  D* d = x.out<D>(i.d);
  const A* a = x.in<A>(i.a);
  each_lane(x.mask, [=](u32 lane) { d[lane] = static_cast<D>(a[lane]); });
}

// cvta, cvta.to: between an address in a space and a generic one. Global and constant memory are the same in
// both.
void lower_cvta(Lowering& l) {
  const bool to_space = l.take("to");
  const Space space = take_space(l);
  const Type type = l.take_type();
  if (space == Space::generic || type_bytes(type) != 8) l.unsupported();
  l.expect_count(2);
  l.inst.d = l.destination(0, Type::u64);
  const Operand& source = l.operand(1);
  if (source.kind == OperandKind::symbol && source.offset == 0)
    l.inst.a = l.symbol_address(source, 8);
  else
    l.inst.a = l.source(1, Type::u64);
  if (space == Space::global || space == Space::constant) return l.emit(&copy_lanes<u64, u64>);
  if (to_space) return l.emit(&from_generic<u64>);
  // In a device function parameters are in local memory.
  const bool in_local = space == Space::local || (space == Space::param && !l.function().entry);
  if (in_local) return l.emit(&to_generic<Space::local, u64>);
  l.emit(space == Space::shared ? &to_generic<Space::shared, u64> : &to_generic<Space::param, u64>);
}

void is_space(Lanes& x, const Inst& i) {
  const u64* a = x.in<u64>(i.a);
  const u64 window = i.imm;
  u32 bits = 0;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    const bool inside = window == 0 ? a[lane] >> 48 != 1 : (a[lane] & ~(kWindowSpan - 1)) == window;
    bits |= static_cast<u32>(inside) << lane;
  }
  x.set_predicate(i.d, bits);
}

void lower_isspacep(Lowering& l) {
  const Space space = take_space(l);
  l.expect_count(2);
  l.inst.d = l.predicate_destination(l.operand(0));
  l.inst.a = l.source(1, Type::u64);
  switch (space) {
    case Space::global:
      l.inst.imm = 0;
      break;
    case Space::shared:
      l.inst.imm = kSharedWindow;
      break;
    case Space::local:
      l.inst.imm = kLocalWindow;
      break;
    case Space::param:
      l.inst.imm = kParamWindow;
      break;
    default:
      l.unsupported();
  }
  l.emit(&is_space);
}

}  // namespace

void add_memory_opcodes(OpcodeTable& table) {
  table["ld"] = &lower_load;
  table["ldu"] = &lower_load;
  table["st"] = &lower_store;
  table["prefetch"] = &lower_prefetch;
  table["prefetchu"] = &lower_prefetch;
  table["applypriority"] = &lower_prefetch;
  table["discard"] = &lower_prefetch;
  table["cvta"] = &lower_cvta;
  table["isspacep"] = &lower_isspacep;
}

}  // namespace gpupool::softgpu::engine
