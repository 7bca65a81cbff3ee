// Shapes that many handlers share: an operation is a struct with a static `of`, applied to each lane.
#pragma once

#include <emmintrin.h>

#include <type_traits>

#include "hostd/softgpu/engine/lower.hpp"

namespace gpupool::softgpu::engine {

template <typename T, typename Op>
void unary_op(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  each_lane(x.mask, [=](u32 lane) { d[lane] = Op::of(a[lane]); });
}

template <typename T, typename Op>
void binary_op(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  each_lane(x.mask, [=](u32 lane) { d[lane] = Op::of(a[lane], b[lane]); });
}

template <typename T, typename Op>
void ternary_op(Lanes& x, const Inst& i) {
  T* d = x.out<T>(i.d);
  const T* a = x.in<T>(i.a);
  const T* b = x.in<T>(i.b);
  const T* c = x.in<T>(i.c);
  each_lane(x.mask, [=](u32 lane) { d[lane] = Op::of(a[lane], b[lane], c[lane]); });
}

// One bit a lane: whether f(lane), for the lanes of the mask.
template <typename F>
inline u32 lane_bits(u32 mask, F f) {
  if (mask != ~0u) {
    u32 bits = 0;
    for (u32 left = mask; left != 0; left &= left - 1)
      if (const u32 lane = first_lane(left); f(lane)) bits |= 1u << lane;
    return bits;
  }
  alignas(16) u8 flags[kWarpLanes];
#pragma GCC ivdep
  for (u32 lane = 0; lane < kWarpLanes; ++lane) flags[lane] = f(lane) ? 0xff : 0;
  const u32 low =
      static_cast<u32>(_mm_movemask_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(flags))));
  const u32 high =
      static_cast<u32>(_mm_movemask_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(flags + 16))));
  return low | high << 16;
}

// Calls f<T>() with the C++ type of an integer type of 16 to 64 bits; null for every other type. Where the
// sign does not matter, the unsigned form keeps overflow defined.
template <typename F>
Handler for_unsigned(Type type, F f) {
  switch (type_bytes(type)) {
    case 2:
      return f.template operator()<u16>();
    case 4:
      return f.template operator()<u32>();
    case 8:
      return f.template operator()<u64>();
    default:
      return nullptr;
  }
}

template <typename F>
Handler for_integer(Type type, F f) {
  switch (type) {
    case Type::u16:
      return f.template operator()<u16>();
    case Type::u32:
      return f.template operator()<u32>();
    case Type::u64:
      return f.template operator()<u64>();
    case Type::s16:
      return f.template operator()<std::int16_t>();
    case Type::s32:
      return f.template operator()<i32>();
    case Type::s64:
      return f.template operator()<i64>();
    default:
      return nullptr;
  }
}

// Sends lanes to different targets: one group each.
template <typename F>
void branch_each(Lanes& x, F target_of) {
  u32 left = x.mask;
  while (left != 0) {
    const u32 target = target_of(first_lane(left));
    u32 same = 0;
    for (u32 rest = left; rest != 0; rest &= rest - 1)
      if (const u32 lane = first_lane(rest); target_of(lane) == target) same |= 1u << lane;
    left &= ~same;
    if (left == 0) {
      x.mask = same;
      return branch_to(x, target);
    }
    // The lanes of this target leave the group; the others go on being sorted.
    Warp& warp = *x.warp;
    warp.groups[warp.current].mask &= ~same;
    warp.add_group(same, target);
    x.event = true;
    x.mask = left;
  }
}

// The families' answers for opcodes that integers and floating point numbers share (exec_float.cpp).
void lower_float_arithmetic(Lowering& l, Type type);
// add.cc, sub.cc, mad.lo.cc: exec_wide.cpp.
void lower_with_carry(Lowering& l);

}  // namespace gpupool::softgpu::engine
