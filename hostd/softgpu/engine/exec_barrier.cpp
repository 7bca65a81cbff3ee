// bar, barrier, bar.warp.sync. A thread arrives by itself (as since sm_70): a barrier for the whole block
// opens when every thread that has not exited has arrived; one with a thread count when that many have, warps
// counted whole.
#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/scheduler.hpp"

namespace gpupool::softgpu::engine {
namespace {

enum BarrierFlag : u32 {
  kWaits = 1 << 8,
  kPopc = 1 << 9,
  kAnd = 1 << 10,
  kOr = 1 << 11,
  kReduces = kPopc | kAnd | kOr
};

void deliver(const Launch& launch, Warp& warp, const Group& group, const Barrier& barrier) {
  const Inst& inst = launch.program->code[group.pc];
  if ((inst.flags & kReduces) == 0) return;
  const bool value = (inst.flags & kAnd) != 0 ? barrier.false_count == 0 : barrier.true_count != 0;
  if ((inst.flags & kPopc) != 0) {
    u32* d = reinterpret_cast<u32*>(warp.regs + inst.d);
    const u32 count = barrier.true_count;
    each_lane(group.mask, [=](u32 lane) { d[lane] = count; });
  } else {
    u32* d = reinterpret_cast<u32*>(warp.regs + inst.d);
    *d = (*d & ~group.mask) | (value ? group.mask : 0);
  }
}

bool complete(const Block& block, const Barrier& barrier) {
  u32 count = 0;
  for (const Warp& warp : block.warps) {
    const u32 arrived = barrier.arrived[warp.index];
    const u32 missing = warp.live & ~arrived;
    if (barrier.expected == 0 && missing != 0) return false;
    if (arrived != 0) count += missing == 0 ? kWarpLanes : static_cast<u32>(__builtin_popcount(arrived));
  }
  return count >= barrier.expected;
}

void open_if_complete(Block& block, u32 number) {
  Barrier& barrier = block.barriers[number];
  if (!barrier.in_use || !complete(block, barrier)) return;
  for (Warp& warp : block.warps) {
    for (u32 i = 0; i < warp.group_count; ++i) {
      Group& group = warp.groups[i];
      if (group.state != GroupState::barrier || group.barrier != number) continue;
      deliver(*block.launch, warp, group, barrier);
      group.state = GroupState::ready;
      group.deferred = false;
      ++group.pc;
    }
  }
  barrier = Barrier{};
}

// a: the number of the barrier (none: the cluster's), b: threads (or none), c: the predicate of a reduction,
// d: its result.
void arrive(Lanes& x, const Inst& i) {
  const u32 lane = first_lane(x.mask);
  const u32 number = i.a == kNoPlace ? kClusterBarrier : x.in<u32>(i.a)[lane];
  if (i.a != kNoPlace && number >= kUserBarriers)
    throw LaunchFault{Fault::illegal_instruction, "barrier number beyond 15", lane};
  u32 expected = i.b == kNoPlace ? 0 : x.in<u32>(i.b)[lane];
  if (expected == x.launch->block_warps * kWarpLanes) expected = 0;  // another way to say all
  Barrier& barrier = x.block->barriers[number];
  if (barrier.in_use && barrier.expected != expected)
    throw LaunchFault{Fault::illegal_instruction, "barrier used with different thread counts", lane};
  split_off(x, x.pc + 1);
  barrier.in_use = true;
  barrier.expected = expected;
  barrier.arrived[x.warp->index] |= x.mask;
  if (i.c != kNoPlace) {
    u32 bits = x.predicate(i.c);
    if ((i.flags & kSourceNegated) != 0) bits = ~bits;
    barrier.true_count += static_cast<u32>(__builtin_popcount(bits & x.mask));
    barrier.false_count += static_cast<u32>(__builtin_popcount(~bits & x.mask));
  }
  Group& group = x.warp->group();
  x.event = true;
  if ((i.flags & kWaits) != 0) {
    group.state = GroupState::barrier;
    group.barrier = static_cast<u8>(number);
    group.pc = x.pc;
  } else {
    group.pc = x.pc + 1;
  }
  open_if_complete(*x.block, number);
}

// bar.warp.sync: the lanes it names may wait at different instructions. a: the lanes.
void sync_warp(Lanes& x, const Inst& i) {
  Warp& warp = *x.warp;
  const u32 lane = first_lane(x.mask);
  const u32 wanted = x.in<u32>(i.a)[lane] & warp.live;
  if ((wanted & ~x.mask) == 0) return;
  const Inst* code = x.launch->program->code.data();
  u32 here = x.mask;
  for (u32 g = 0; g < warp.group_count; ++g)
    if (warp.groups[g].state == GroupState::lanes && code[warp.groups[g].pc].run == &sync_warp)
      here |= warp.groups[g].mask;
  if ((wanted & ~here) != 0) return wait_for_lanes(x);
  for (u32 g = 0; g < warp.group_count; ++g) {
    Group& group = warp.groups[g];
    if (group.state != GroupState::lanes || code[group.pc].run != &sync_warp) continue;
    group.state = GroupState::ready;
    group.deferred = false;
    ++group.pc;
  }
  split_off(x, x.pc + 1);
  warp.group().pc = x.pc + 1;
  x.event = true;
}

void lower_reduction(Lowering& l, size_t first) {
  if (l.take("popc"))
    l.inst.flags |= kPopc;
  else if (l.take("and"))
    l.inst.flags |= kAnd;
  else if (l.take("or"))
    l.inst.flags |= kOr;
  else
    l.unsupported();
  const Type type = l.take_type();
  if ((type == Type::u32) != ((l.inst.flags & kPopc) != 0) || (type != Type::u32 && type != Type::pred))
    l.unsupported();
  l.expect_count(first + 2, first + 3);
  l.inst.d = l.destination(0, type);
  l.inst.a = l.source(first, Type::u32);
  if (l.count() == first + 3) l.inst.b = l.source(first + 1, Type::u32);
  const Operand& predicate = l.operand(l.count() - 1);
  l.inst.c = l.predicate(predicate);
  if (predicate.negated) l.inst.flags |= kSourceNegated;
}

void lower_bar(Lowering& l) {
  l.take("cta");
  if (l.take("warp")) {
    if (!l.take("sync")) l.unsupported();
    l.expect_count(1);
    l.inst.a = l.source(0, Type::b32);
    return l.emit(&sync_warp);
  }
  l.take("aligned");
  if (l.take("red")) {
    l.inst.flags |= kWaits;
    lower_reduction(l, 1);
    return l.emit(&arrive);
  }
  const bool arrives = l.take("arrive");
  if (!arrives && !l.take("sync")) l.unsupported();
  if (!arrives) l.inst.flags |= kWaits;
  l.expect_count(arrives ? 2 : 1, 2);
  l.inst.a = l.source(0, Type::u32);
  if (l.count() == 2) l.inst.b = l.source(1, Type::u32);
  l.emit(&arrive);
}

void nothing(Lanes&, const Inst&) {}

// barrier.cluster in a cluster of one block is a barrier for the block: arrive marks, wait does the waiting.
void lower_barrier(Lowering& l) {
  if (!l.take("cluster")) return lower_bar(l);
  l.skip_any({"release", "acquire", "relaxed", "aligned"});
  l.expect_count(0);
  if (l.take("arrive")) return l.emit(&nothing);
  if (!l.take("wait")) l.unsupported();
  l.inst.flags |= kWaits;
  l.emit(&arrive);
}

}  // namespace

void recheck_barriers(Block& block) {
  for (u32 number = 0; number < kBarriers; ++number) open_if_complete(block, number);
}

void add_barrier_opcodes(OpcodeTable& table) {
  table["bar"] = &lower_bar;
  table["barrier"] = &lower_barrier;
}

}  // namespace gpupool::softgpu::engine
