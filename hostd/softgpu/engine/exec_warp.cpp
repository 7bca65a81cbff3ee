// Instructions that look across the lanes of a warp: shfl, vote, match, redux, activemask, elect.
#include <algorithm>

#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

// All lanes that `members` names, for the executing lanes, must be executing. Those whose partners are
// missing are parked until they come; x.mask keeps the others. False when none is left.
bool gather(Lanes& x, Place members) {
  const u32* named = x.in<u32>(members);
  const u32 live = x.warp->live;
  if ((live & ~x.mask) == 0) return true;
  u32 satisfied = 0;
  for (u32 left = x.mask; left != 0; left &= left - 1)
    if (const u32 lane = first_lane(left); (named[lane] & live & ~x.mask) == 0) satisfied |= 1u << lane;
  if (satisfied == x.mask) return true;
  if (satisfied == 0) {
    wait_for_lanes(x);
    return false;
  }
  const u32 waiting = x.mask & ~satisfied;
  split_off(x, x.pc + 1);
  Warp& warp = *x.warp;
  warp.group().mask = satisfied;
  warp.group().pc = x.pc + 1;
  warp.add_group(waiting, x.pc, GroupState::lanes);
  x.mask = satisfied;
  x.event = true;
  return true;
}

enum class Shuffle : u32 { up, down, bfly, idx };

// PTX ISA 9.0, 9.7.9.6: c packs the clamp (bits 0-4) and the segment mask (bits 8-12).
u32 source_lane(Shuffle mode, u32 lane, u32 b, u32 c, bool& inside) {
  const u32 segment = c >> 8 & 31;
  const u32 clamp = c & 31;
  const u32 highest = (lane & segment) | (clamp & ~segment);
  const u32 lowest = lane & segment;
  u32 from = 0;
  b &= 31;
  switch (mode) {
    case Shuffle::up:
      from = lane - b;
      inside = static_cast<i32>(from) >= static_cast<i32>(highest);
      break;
    case Shuffle::down:
      from = lane + b;
      inside = from <= highest;
      break;
    case Shuffle::bfly:
      from = lane ^ b;
      inside = from <= highest;
      break;
    default:
      from = lowest | (b & ~segment);
      inside = from <= highest;
      break;
  }
  return inside ? from : lane;
}

// d|e = shfl a, b, c; members in the list.
template <Shuffle kMode>
void shuffle(Lanes& x, const Inst& i) {
  if (!gather(x, x.launch->program->lists[i.list])) return;
  const u32* a = x.in<u32>(i.a);
  const u32* b = x.in<u32>(i.b);
  const u32* c = x.in<u32>(i.c);
  u32 result[kWarpLanes];
  u32 inside_bits = 0;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    bool inside = false;
    result[lane] = a[source_lane(kMode, lane, b[lane], c[lane], inside) & 31];
    inside_bits |= static_cast<u32>(inside) << lane;
  }
  u32* d = x.out<u32>(i.d);
  each_lane(x.mask, [&](u32 lane) { d[lane] = result[lane]; });
  if (i.e != kNoPlace) x.set_predicate(i.e, inside_bits);
}

void lower_shfl(Lowering& l) {
  if (!l.take("sync")) l.unsupported();  // the form without .sync ended with sm_70
  const Handler handler = l.take("up")     ? &shuffle<Shuffle::up>
                          : l.take("down") ? &shuffle<Shuffle::down>
                          : l.take("bfly") ? &shuffle<Shuffle::bfly>
                          : l.take("idx")  ? &shuffle<Shuffle::idx>
                                           : nullptr;
  if (handler == nullptr || l.take_type() != Type::b32) l.unsupported();
  l.expect_count(5);
  const Operand& target = l.operand(0);
  const bool pair = target.kind == OperandKind::pair;
  l.inst.d = l.destination(pair ? target.parts[0] : target, Type::b32);
  if (pair) l.inst.e = l.predicate_destination(target.parts[1]);
  l.inst.a = l.source(1, Type::b32);
  l.inst.b = l.source(2, Type::b32);
  l.inst.c = l.source(3, Type::b32);
  l.inst.list = l.add_list({l.source(4, Type::b32)});
  l.emit(handler);
}

// Calls f(lanes) for each set of executing lanes that name the same members.
template <typename F>
void each_team(Lanes& x, Place members, F f) {
  const u32* named = x.in<u32>(members);
  for (u32 left = x.mask; left != 0;) {
    const u32 value = named[first_lane(left)];
    u32 team = 0;
    for (u32 rest = left; rest != 0; rest &= rest - 1)
      if (named[first_lane(rest)] == value) team |= 1u << first_lane(rest);
    left &= ~team;
    f(team);
  }
}

enum class Vote : u64 { all, any, uni, ballot };

// a: the predicate, b: members, imm: the mode.
void vote(Lanes& x, const Inst& i) {
  if (!gather(x, i.b)) return;
  u32 bits = x.predicate(i.a);
  if ((i.flags & kSourceNegated) != 0) bits = ~bits;
  each_team(x, i.b, [&](u32 team) {
    const u32 yes = bits & team;
    if (static_cast<Vote>(i.imm) == Vote::ballot) {
      u32* d = x.out<u32>(i.d);
      each_lane(team, [=](u32 lane) { d[lane] = yes; });
      return;
    }
    bool result = yes != 0;
    if (static_cast<Vote>(i.imm) == Vote::all) result = yes == team;
    if (static_cast<Vote>(i.imm) == Vote::uni) result = yes == team || yes == 0;
    u32* d = x.out<u32>(i.d);
    *d = (*d & ~team) | (result ? team : 0);
  });
}

void lower_vote(Lowering& l) {
  if (!l.take("sync")) l.unsupported();
  const Vote mode = l.take("all")   ? Vote::all
                    : l.take("any") ? Vote::any
                    : l.take("uni") ? Vote::uni
                                    : Vote::ballot;
  if (mode == Vote::ballot && !l.take("ballot")) l.unsupported();
  const Type type = l.take_type();
  if (type != (mode == Vote::ballot ? Type::b32 : Type::pred)) l.unsupported();
  l.expect_count(3);
  l.inst.imm = static_cast<u64>(mode);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.predicate(l.operand(1));
  if (l.operand(1).negated) l.inst.flags |= kSourceNegated;
  l.inst.b = l.source(2, Type::b32);
  l.emit(&vote);
}

// imm: 1 for match.all.
template <typename T>
void match(Lanes& x, const Inst& i) {
  if (!gather(x, i.b)) return;
  const T* a = x.in<T>(i.a);
  u32* d = x.out<u32>(i.d);
  u32 same_bits = 0;
  u32 result[kWarpLanes];
  each_team(x, i.b, [&](u32 team) {
    for (u32 left = team; left != 0; left &= left - 1) {
      const u32 lane = first_lane(left);
      u32 same = 0;
      for (u32 rest = team; rest != 0; rest &= rest - 1)
        if (a[first_lane(rest)] == a[lane]) same |= 1u << first_lane(rest);
      const bool all = same == team;
      result[lane] = i.imm == 0 ? same : all ? team : 0;
      same_bits |= static_cast<u32>(all) << lane;
    }
  });
  each_lane(x.mask, [&](u32 lane) { d[lane] = result[lane]; });
  if (i.e != kNoPlace) x.set_predicate(i.e, same_bits);
}

void lower_match(Lowering& l) {
  const bool all = l.take("all");
  if ((!all && !l.take("any")) || !l.take("sync")) l.unsupported();
  const Type type = l.take_type();
  if (type != Type::b32 && type != Type::b64) l.unsupported();
  l.expect_count(3);
  const Operand& target = l.operand(0);
  const bool pair = target.kind == OperandKind::pair;
  if (pair && !all) l.unsupported();
  l.inst.imm = all ? 1 : 0;
  l.inst.d = l.destination(pair ? target.parts[0] : target, Type::b32);
  if (pair) l.inst.e = l.predicate_destination(target.parts[1]);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, Type::b32);
  l.emit(type == Type::b32 ? &match<u32> : &match<u64>);
}

struct ReduceAdd {
  template <typename T>
  static T of(T a, T b) {
    return a + b;
  }
};
struct ReduceMin {
  template <typename T>
  static T of(T a, T b) {
    return std::min(a, b);
  }
};
struct ReduceMax {
  template <typename T>
  static T of(T a, T b) {
    return std::max(a, b);
  }
};
struct ReduceAnd {
  static u32 of(u32 a, u32 b) { return a & b; }
};
struct ReduceOr {
  static u32 of(u32 a, u32 b) { return a | b; }
};
struct ReduceXor {
  static u32 of(u32 a, u32 b) { return a ^ b; }
};

template <typename T, typename Op>
void reduce(Lanes& x, const Inst& i) {
  if (!gather(x, i.b)) return;
  const T* a = x.in<T>(i.a);
  T* d = x.out<T>(i.d);
  each_team(x, i.b, [&](u32 team) {
    T value = a[first_lane(team)];
    for (u32 left = team & (team - 1); left != 0; left &= left - 1)
      value = Op::of(value, a[first_lane(left)]);
    each_lane(team, [=](u32 lane) { d[lane] = value; });
  });
}

void lower_redux(Lowering& l) {
  if (!l.take("sync")) l.unsupported();
  Handler handler = nullptr;
  const bool add = l.take("add");
  const bool min = !add && l.take("min");
  const bool max = !add && !min && l.take("max");
  const bool logic_and = l.take("and");
  const bool logic_or = l.take("or");
  const bool logic_xor = l.take("xor");
  const Type type = l.take_type();
  const bool is_signed_type = type == Type::s32;
  if (type == Type::b32) {
    handler = logic_and   ? &reduce<u32, ReduceAnd>
              : logic_or  ? &reduce<u32, ReduceOr>
              : logic_xor ? &reduce<u32, ReduceXor>
                          : nullptr;
  } else if (type == Type::u32 || type == Type::s32) {
    if (add) handler = &reduce<u32, ReduceAdd>;
    if (min) handler = is_signed_type ? &reduce<i32, ReduceMin> : &reduce<u32, ReduceMin>;
    if (max) handler = is_signed_type ? &reduce<i32, ReduceMax> : &reduce<u32, ReduceMax>;
  }
  if (handler == nullptr) l.unsupported();
  l.expect_count(3);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(1, type);
  l.inst.b = l.source(2, Type::b32);
  l.emit(handler);
}

void active_mask(Lanes& x, const Inst& i) {
  u32* d = x.out<u32>(i.d);
  const u32 mask = x.mask;
  each_lane(mask, [=](u32 lane) { d[lane] = mask; });
}

void lower_activemask(Lowering& l) {
  if (l.take_type() != Type::b32) l.unsupported();
  l.expect_count(1);
  l.inst.d = l.destination(0, Type::b32);
  l.emit(&active_mask);
}

void elect(Lanes& x, const Inst& i) {
  if (!gather(x, i.b)) return;
  u32* d = x.out<u32>(i.d);
  u32 chosen = 0;
  each_team(x, i.b, [&](u32 team) {
    const u32 leader = first_lane(team);
    chosen |= 1u << leader;
    each_lane(team, [=](u32 lane) { d[lane] = leader; });
  });
  x.set_predicate(i.e, chosen);
}

void lower_elect(Lowering& l) {
  if (!l.take("sync")) l.unsupported();
  l.expect_count(2);
  const Operand& target = l.operand(0);
  if (target.kind != OperandKind::pair) l.unsupported();
  l.inst.d = l.destination(target.parts[0], Type::b32);
  l.inst.e = l.predicate_destination(target.parts[1]);
  l.inst.b = l.source(1, Type::b32);
  l.emit(&elect);
}

}  // namespace

void add_warp_opcodes(OpcodeTable& table) {
  table["shfl"] = &lower_shfl;
  table["vote"] = &lower_vote;
  table["match"] = &lower_match;
  table["redux"] = &lower_redux;
  table["activemask"] = &lower_activemask;
  table["elect"] = &lower_elect;
}

}  // namespace gpupool::softgpu::engine
