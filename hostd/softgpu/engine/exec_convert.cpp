// cvt. The conversions that compilers emit all the time are plain loops; every other goes value by value
// through convert().
#include <cstring>
#include <limits>

#include "hostd/softgpu/engine/convert.hpp"
#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/rounding.hpp"

namespace gpupool::softgpu::engine {
namespace {

u64 read_lane(const u8* row, u32 bytes, u32 lane) {
  u64 value = 0;
  std::memcpy(&value, row + static_cast<u64>(lane) * bytes, bytes);
  return value;
}

// imm: the Conversion; b and c as numbers (complemented): bytes of the source and of the destination
// register.
void convert_any(Lanes& x, const Inst& i) {
  const Conversion conversion = Conversion::unpack(i.imm);
  const u32 from_bytes = static_cast<u32>(~i.b);
  const u32 to_bytes = static_cast<u32>(~i.c);
  const RoundingScope scope(conversion.to_integral ? Rounding::nearest : conversion.rounding);
  const u8* a = x.in<u8>(i.a);
  u8* d = x.out<u8>(i.d);
  // All sources are read before any result is written: source and destination may be one register.
  u64 results[kWarpLanes];
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    results[lane] = convert(read_lane(a, from_bytes, lane), conversion);
  }
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    std::memcpy(d + static_cast<u64>(lane) * to_bytes, &results[lane], to_bytes);
  }
}

// Two f32 to one packed register: a becomes the upper half, b the lower.
void convert_pair(Lanes& x, const Inst& i) {
  Conversion conversion = Conversion::unpack(i.imm);
  const u32 half_bits = type_bytes(conversion.to) * 4;
  if (conversion.to == Type::f16x2) conversion.to = Type::f16;
  if (conversion.to == Type::bf16x2) conversion.to = Type::bf16;
  const u32* a = x.in<u32>(i.a);
  const u32* b = x.in<u32>(i.b);
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    const u64 high = convert(a[lane], conversion);
    const u64 low = convert(b[lane], conversion);
    if (half_bits == 16)
      x.out<u32>(i.d)[lane] = static_cast<u32>(high << 16 | low);
    else
      x.out<u16>(i.d)[lane] = static_cast<u16>(high << 8 | low);
  }
}

// Between two packed types (fp8 pairs and f16x2).
void convert_packed(Lanes& x, const Inst& i) {
  Conversion conversion = Conversion::unpack(i.imm);
  const bool from_half = conversion.from == Type::f16x2;
  if (from_half)
    conversion.from = Type::f16;
  else
    conversion.to = Type::f16;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    if (from_half) {
      const u32 a = x.in<u32>(i.a)[lane];
      const u64 high = encode_float(decode_float(a >> 16, Type::f16), conversion);
      const u64 low = encode_float(decode_float(a & 0xffff, Type::f16), conversion);
      x.out<u16>(i.d)[lane] = static_cast<u16>(high << 8 | low);
    } else {
      const u32 a = x.in<u16>(i.a)[lane];
      const u64 high = encode_float(decode_float(a >> 8, conversion.from), conversion);
      const u64 low = encode_float(decode_float(a & 0xff, conversion.from), conversion);
      x.out<u32>(i.d)[lane] = static_cast<u32>(high << 16 | low);
    }
  }
}

// Conversions for which C++ says the same as PTX.
template <typename D, typename S>
void convert_plain(Lanes& x, const Inst& i) {
  const S* a = x.in<S>(i.a);
  D* d = x.out<D>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = static_cast<D>(a[lane]); });
}

void float_to_s32(Lanes& x, const Inst& i) {
  const float* a = x.in<float>(i.a);
  i32* d = x.out<i32>(i.d);
  each_lane(x.mask, [=](u32 lane) {
    const float value = a[lane];
    if (value >= 2147483648.0f)
      d[lane] = 0x7fff'ffff;
    else if (value > -2147483904.0f)
      d[lane] = static_cast<i32>(value);
    else
      d[lane] = value != value ? 0 : std::numeric_limits<i32>::min();
  });
}

void half_to_float(Lanes& x, const Inst& i) {
  const u16* a = x.in<u16>(i.a);
  float* d = x.out<float>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = float_from_half(a[lane]); });
}

void float_to_half(Lanes& x, const Inst& i) {
  const float* a = x.in<float>(i.a);
  u16* d = x.out<u16>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = half_from_double(static_cast<double>(a[lane])); });
}

Handler fast_handler(const Conversion& c) {
  const bool nearest = c.rounding == Rounding::nearest && !c.to_integral;
  if (c.flush || c.saturate || c.relu || c.finite) return nullptr;
  switch (c.from) {
    case Type::s32:
      if (c.to == Type::f32 && nearest) return &convert_plain<float, i32>;
      if (c.to == Type::f64) return &convert_plain<double, i32>;
      if (c.to == Type::s64 || c.to == Type::u64) return &convert_plain<i64, i32>;
      return nullptr;
    case Type::u32:
      if (c.to == Type::f32 && nearest) return &convert_plain<float, u32>;
      if (c.to == Type::f64) return &convert_plain<double, u32>;
      if (c.to == Type::s64 || c.to == Type::u64) return &convert_plain<u64, u32>;
      return nullptr;
    case Type::u64:
    case Type::s64:
      return c.to == Type::u32 || c.to == Type::s32 ? &convert_plain<u32, u64> : nullptr;
    case Type::f32:
      if (c.to == Type::f64) return &convert_plain<double, float>;
      if (c.to == Type::f16 && nearest) return &float_to_half;
      return c.to == Type::s32 && c.rounding == Rounding::zero ? &float_to_s32 : nullptr;
    case Type::f64:
      return c.to == Type::f32 && nearest ? &convert_plain<float, double> : nullptr;
    case Type::f16:
      return c.to == Type::f32 ? &half_to_float : nullptr;
    default:
      return nullptr;
  }
}

// .rni, .rzi, .rmi, .rpi; .rn, .rz, .rm, .rp; .rna
bool take_any_rounding(Lowering& l, Conversion& c) {
  constexpr std::string_view integral[] = {"rni", "rzi", "rmi", "rpi"};
  for (u8 mode = 0; mode < 4; ++mode)
    if (l.take(integral[mode])) {
      c.rounding = static_cast<Rounding>(mode);
      c.to_integral = true;
      return true;
    }
  if (l.take("rna")) {
    c.rounding = Rounding::away;
    return true;
  }
  const auto rounding = take_rounding(l);
  if (rounding) c.rounding = *rounding;
  return rounding.has_value();
}

bool lower_packed(Lowering& l, Conversion& c) {
  const bool to_pair = c.to == Type::f16x2 || c.to == Type::bf16x2;
  const bool to_small = c.to == Type::e4m3x2 || c.to == Type::e5m2x2;
  const bool from_small = c.from == Type::e4m3x2 || c.from == Type::e5m2x2;
  if (!to_pair && !to_small && !from_small) return false;
  if (to_small && !c.finite) l.unsupported();
  if (c.rounding != Rounding::nearest && !(c.rounding == Rounding::zero && to_pair && c.from == Type::f32))
    l.unsupported();
  c.finite = l.take("satfinite") || c.finite;
  if ((to_pair || to_small) && c.from == Type::f32) {
    l.expect_count(3);
    l.inst.d = l.destination(0, c.to);
    l.inst.a = l.source(1, Type::f32);
    l.inst.b = l.source(2, Type::f32);
    l.inst.imm = c.packed();
    l.emit(&convert_pair);
    return true;
  }
  if (!(to_small && c.from == Type::f16x2) && !(from_small && c.to == Type::f16x2)) l.unsupported();
  l.expect_count(2);
  l.inst.d = l.destination(0, c.to);
  l.inst.a = l.source(1, c.from);
  l.inst.imm = c.packed();
  l.emit(&convert_packed);
  return true;
}

// What PTX demands of a rounding modifier: without one a conversion must be exact.
void check_rounding(Lowering& l, const Conversion& c, bool rounded) {
  const bool from_float = is_float(c.from);
  const bool to_float = is_float(c.to);
  if (from_float && !to_float && !c.to_integral) l.fail("needs an integer rounding modifier");
  if (!from_float && to_float && (!rounded || c.to_integral)) l.fail("needs a rounding modifier");
  if (!from_float && !to_float && rounded) l.fail("has a rounding modifier between integers");
  if (c.rounding == Rounding::away && c.to != Type::tf32) l.unsupported();
  if (from_float && to_float && c.to_integral && c.to != c.from) l.unsupported();
  const bool narrows = type_bytes(c.to) < type_bytes(c.from) || c.to == Type::tf32 ||
                       (c.from != c.to && type_bytes(c.to) == 2);
  if (from_float && to_float && narrows && !rounded) l.fail("needs a rounding modifier");
}

void lower_cvt(Lowering& l) {
  Conversion c;
  if (l.take("pack")) l.unsupported();
  const bool rounded = take_any_rounding(l, c);
  c.flush = l.take("ftz");
  c.saturate = l.take("sat");
  c.finite = l.take("satfinite");
  c.relu = l.take("relu");
  c.to = l.take_type();
  c.from = l.take_type();
  const auto convertible = [](Type type) { return is_integer(type) || is_float(type); };
  if (!convertible(c.to) || !convertible(c.from) || c.from == Type::tf32) l.unsupported();
  if (lower_packed(l, c)) return;
  if (c.from == Type::f16x2 || c.from == Type::bf16x2) l.unsupported();
  check_rounding(l, c, rounded);
  const bool small_target = c.to == Type::f16 || c.to == Type::bf16 || c.to == Type::tf32;
  if ((c.relu || c.finite) && !small_target) l.unsupported();
  if (c.flush && c.from != Type::f32 && c.to != Type::f32) l.unsupported();
  if (c.saturate && is_float(c.from) && !is_float(c.to))
    c.saturate = false;  // the result is within range anyway
  l.expect_count(2);
  u32 to_bytes = 0;
  u32 from_bytes = 0;
  l.inst.d = l.loose_destination(l.operand(0), c.to, to_bytes);
  l.inst.a = l.loose_source(l.operand(1), c.from, from_bytes);
  l.inst.imm = c.packed();
  if (to_bytes == type_bytes(c.to) && from_bytes == type_bytes(c.from))
    if (const Handler handler = fast_handler(c); handler != nullptr) return l.emit(handler);
  l.inst.b = ~static_cast<Place>(from_bytes);
  l.inst.c = ~static_cast<Place>(to_bytes);
  l.emit(&convert_any);
}

}  // namespace

void add_convert_opcodes(OpcodeTable& table) {
  table["cvt"] = &lower_cvt;
}

}  // namespace gpupool::softgpu::engine
