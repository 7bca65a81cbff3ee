#include "hostd/softgpu/engine/scheduler.hpp"

namespace gpupool::softgpu::engine {
namespace {

void remove_group(Warp& warp, u32 index) {
  warp.groups[index] = warp.groups[--warp.group_count];
}

// The group to run: the lowest instruction among the ready ones that have not used their turn.
u32 choose(Warp& warp) {
  u32 best = ~0u;
  bool deferred = false;
  for (u32 i = 0; i < warp.group_count; ++i) {
    const Group& group = warp.groups[i];
    if (group.state != GroupState::ready) continue;
    if (group.deferred)
      deferred = true;
    else if (best == ~0u || group.pc < warp.groups[best].pc)
      best = i;
  }
  if (best != ~0u || !deferred) return best;
  for (u32 i = 0; i < warp.group_count; ++i) warp.groups[i].deferred = false;
  return choose(warp);
}

// Brings the ready groups and those that wait for lanes at the current group's instruction together in it.
void merge(Warp& warp) {
  u32 current = warp.current;
  for (u32 i = 0; i < warp.group_count;) {
    Group& group = warp.groups[current];
    Group& other = warp.groups[i];
    if (i == current || other.pc != group.pc || other.state == GroupState::barrier) {
      ++i;
      continue;
    }
    group.mask |= other.mask;
    const u32 last = warp.group_count - 1;
    remove_group(warp, i);
    if (current == last) current = i;  // it was moved into the gap
  }
  warp.current = current;
}

// The next instruction at which another group stands: there the current one stops to merge.
u32 next_meeting(const Warp& warp, u32 pc) {
  u32 meeting = ~0u;
  for (u32 i = 0; i < warp.group_count; ++i) {
    const Group& group = warp.groups[i];
    if (i != warp.current && group.state != GroupState::barrier && group.pc > pc && group.pc < meeting)
      meeting = group.pc;
  }
  return meeting;
}

// Runs the current group until the groups change, it meets another, or its patience ends.
void run_group(Lanes& x, Warp& warp, const Inst* code) {
  Group& group = warp.groups[warp.current];
  const u32 mask = group.mask;
  const u32 meeting = next_meeting(warp, group.pc);
  u32 pc = group.pc;
  x.event = false;
  do {
    const Inst& inst = code[pc];
    x.pc = pc;
    x.next = pc + 1;
    x.mask = mask;
    if (inst.guard != kNoPlace) {
      const u32 bits = x.predicate(inst.guard);
      x.mask &= (inst.flags & kGuardNegated) != 0 ? ~bits : bits;
    }
    if (x.mask != 0) inst.run(x, inst);
    pc = x.next;
    --x.patience;
  } while (!x.event && pc != meeting && x.patience != 0);
  if (!x.event) group.pc = pc;
}

}  // namespace

void start_warp(Warp& warp, u32 pc, u32 mask) {
  warp.live = mask;
  warp.group_count = 0;
  warp.add_group(mask, pc);
}

bool run_warp(Warp& warp, CachedRange* ranges) {
  Launch& launch = *warp.block->launch;
  Lanes x;
  x.regs = warp.regs;
  x.consts = reinterpret_cast<const u8*>(launch.program->constants.data());
  x.warp = &warp;
  x.block = warp.block;
  x.launch = &launch;
  x.ranges = ranges;
  const Inst* const code = launch.program->code.data();
  u32 turns = 0;
  while (warp.live != 0) {
    const u32 chosen = choose(warp);
    if (chosen == ~0u) return turns != 0;
    // The warp's turn ends when each of its groups could have used theirs.
    if (++turns > 4096) return true;
    warp.current = chosen;
    merge(warp);
    const u32 serial = warp.group().serial;
    x.patience = warp.group().patience;
    try {
      run_group(x, warp, code);
    } catch (const LaunchFault& fault) {
      launch.fail(fault, *warp.block, warp, x.pc);
      return true;
    }
    const bool still_there = warp.current < warp.group_count && warp.group().serial == serial;
    if (!still_there) continue;
    warp.group().patience = x.patience;
    if (x.patience != 0) continue;
    warp.group().patience = kPatience;
    warp.group().deferred = true;
    if (warp.group_count == 1 || launch.stop.load(std::memory_order_relaxed)) return true;
    turns += 256;
  }
  return turns != 0;
}

void split_off(Lanes& lanes, u32 rest_pc) {
  Warp& warp = *lanes.warp;
  Group& group = warp.groups[warp.current];
  const u32 rest = group.mask & ~lanes.mask;
  if (rest == 0) return;
  group.mask = lanes.mask;
  warp.add_group(rest, rest_pc);
  lanes.event = true;
}

void branch_to(Lanes& lanes, u32 target) {
  Warp& warp = *lanes.warp;
  Group& group = warp.groups[warp.current];
  if (lanes.mask == group.mask) {
    lanes.next = target;
    if (warp.group_count > 1) {
      group.pc = target;
      lanes.event = true;
    }
    return;
  }
  split_off(lanes, lanes.pc + 1);
  warp.groups[warp.current].pc = target;
}

void wake_waiting_lanes(Warp& warp) {
  for (u32 i = 0; i < warp.group_count; ++i)
    if (warp.groups[i].state == GroupState::lanes) warp.groups[i].state = GroupState::ready;
}

void wait_for_lanes(Lanes& lanes) {
  split_off(lanes, lanes.pc + 1);
  Group& group = lanes.warp->group();
  group.state = GroupState::lanes;
  group.pc = lanes.pc;
  lanes.event = true;
}

void exit_lanes(Lanes& lanes) {
  Warp& warp = *lanes.warp;
  Group& group = warp.groups[warp.current];
  group.mask &= ~lanes.mask;
  group.pc = lanes.pc + 1;
  warp.live &= ~lanes.mask;
  if (group.mask == 0) remove_group(warp, warp.current);
  lanes.event = true;
  wake_waiting_lanes(warp);
  if (warp.live == 0) --warp.block->live_warps;
  recheck_barriers(*warp.block);
}

}  // namespace gpupool::softgpu::engine
