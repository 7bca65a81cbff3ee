// call and ret. Parameters and results are copied between the local memory of caller and callee.
#include <cstring>

#include "hostd/softgpu/engine/builtin.hpp"
#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

constexpr u32 kMaxSavedBytes = 1u << 20;  // of registers and local memory a lane, for recursion

// Recursion. The callee may come back into the caller's function, whose registers and local memory exist
// once: they are kept aside for the lanes that call and come back when those return.
void save_frame(Lanes& x, const Function& function) {
  Warp& warp = *x.warp;
  if (warp.saved_frames.empty()) warp.saved_frames.resize(kWarpLanes);
  const u32 local_bytes = x.launch->kernel->local_bytes;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    std::vector<u8>& saved = warp.saved_frames[lane];
    if (saved.size() + function.saved_bytes > kMaxSavedBytes)
      throw LaunchFault{Fault::illegal_address, "stack overflow: recursion is too deep", lane};
    for (const SavedRow& row : function.saved_rows) {
      const u8* from = warp.regs + function.frame_base + row.offset;
      if (row.bytes == 0) {
        u32 bits = 0;
        std::memcpy(&bits, from, 4);
        saved.push_back(static_cast<u8>(bits >> lane & 1));
      } else {
        saved.insert(saved.end(), from + lane * row.bytes, from + (lane + 1) * row.bytes);
      }
    }
    const u8* local = warp.local + static_cast<u64>(lane) * local_bytes + function.local_base;
    saved.insert(saved.end(), local, local + function.local_bytes);
  }
}

void restore_frame(Lanes& x, const Function& function) {
  Warp& warp = *x.warp;
  const u32 local_bytes = x.launch->kernel->local_bytes;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    std::vector<u8>& saved = warp.saved_frames[lane];
    size_t at = saved.size() - function.saved_bytes;
    for (const SavedRow& row : function.saved_rows) {
      u8* to = warp.regs + function.frame_base + row.offset;
      if (row.bytes == 0) {
        u32 bits = 0;
        std::memcpy(&bits, to, 4);
        bits = (bits & ~(1u << lane)) | static_cast<u32>(saved[at]) << lane;
        std::memcpy(to, &bits, 4);
        at += 1;
      } else {
        std::memcpy(to + lane * row.bytes, saved.data() + at, row.bytes);
        at += row.bytes;
      }
    }
    if (function.local_bytes != 0)
      std::memcpy(warp.local + static_cast<u64>(lane) * local_bytes + function.local_base, saved.data() + at,
                  function.local_bytes);
    saved.erase(saved.end() - static_cast<std::ptrdiff_t>(function.saved_bytes), saved.end());
  }
}

// Local memory of caller to local memory of callee and back. With recursion source and target may be the same
// bytes: all are read before any is written.
void copy_parameters(Lanes& x, const std::vector<ParameterCopy>& copies, std::vector<u8>& scratch) {
  const u32 local_bytes = x.launch->kernel->local_bytes;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    u8* local = x.warp->local + static_cast<u64>(first_lane(left)) * local_bytes;
    scratch.clear();
    for (const ParameterCopy& copy : copies)
      scratch.insert(scratch.end(), local + copy.from, local + copy.from + copy.bytes);
    size_t at = 0;
    for (const ParameterCopy& copy : copies) {
      std::memcpy(local + copy.to, scratch.data() + at, copy.bytes);
      at += copy.bytes;
    }
  }
}

void enter(Lanes& x, u32 site_index, const CallSite& site, const Function& callee,
           const std::vector<ParameterCopy>& copies) {
  const ProgramImpl& program = *x.launch->program;
  if (site.saves_frame) save_frame(x, program.functions[site.caller]);
  std::vector<u8> scratch;
  copy_parameters(x, copies, scratch);
  u32* return_pc = x.out<u32>(callee.return_pc);
  u32* return_site = x.out<u32>(callee.return_site);
  const u32 back = x.pc + 1;
  each_lane(x.mask, [=](u32 lane) {
    return_pc[lane] = back;
    return_site[lane] = site_index;
  });
  branch_to(x, callee.begin);
}

// imm: the call site.
void call(Lanes& x, const Inst& i) {
  const ProgramImpl& program = *x.launch->program;
  const CallSite& site = program.call_sites[i.imm];
  const Function& callee = program.functions[site.callee];
  if (callee.builtin != Builtin::none) return call_builtin(x, site, callee);
  enter(x, static_cast<u32>(i.imm), site, callee, site.in);
}

void call_indirect(Lanes& x, const Inst& i) {
  const ProgramImpl& program = *x.launch->program;
  const CallSite& site = program.call_sites[i.imm];
  const u64* address = x.in<u64>(i.a);
  const u32 lane = first_lane(x.mask);
  const u64 target = address[lane];
  // Lanes with another target stay at this instruction and call later.
  u32 same = 0;
  for (u32 left = x.mask; left != 0; left &= left - 1)
    if (address[first_lane(left)] == target) same |= 1u << first_lane(left);
  const u64 index = (target - kCodeWindow) / 16;
  if (target < kCodeWindow || index >= program.functions.size() || (target & 15) != 0)
    throw LaunchFault{Fault::illegal_instruction, "call of an address that is no function", lane};
  const Function& callee = program.functions[index];
  if (callee.entry || !callee.defined)
    throw LaunchFault{Fault::illegal_instruction, "call of '" + callee.name + "'", lane};
  std::vector<ParameterCopy> copies;
  std::string problem;
  if (!match_parameters(program, site, callee, true, copies, problem))
    throw LaunchFault{Fault::illegal_instruction, problem, lane};
  if (x.mask != same || x.mask != x.warp->groups[x.warp->current].mask) {
    const u32 others = x.mask & ~same;
    split_off(x, x.pc + 1);
    x.mask = same;
    if (others != 0) split_off(x, x.pc);
  }
  enter(x, static_cast<u32>(i.imm), site, callee, copies);
}

// Results leave the callee's local memory before the caller's comes back over it.
void return_results(Lanes& x, const CallSite& site, const std::vector<ParameterCopy>& copies) {
  const ProgramImpl& program = *x.launch->program;
  const u32 local_bytes = x.launch->kernel->local_bytes;
  const u32 mask = x.mask;
  std::vector<u8> scratch;
  for (u32 left = mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    u8* local = x.warp->local + static_cast<u64>(lane) * local_bytes;
    scratch.clear();
    for (const ParameterCopy& copy : copies)
      scratch.insert(scratch.end(), local + copy.from, local + copy.from + copy.bytes);
    x.mask = 1u << lane;
    if (site.saves_frame) restore_frame(x, program.functions[site.caller]);
    size_t at = 0;
    for (const ParameterCopy& copy : copies) {
      std::memcpy(local + copy.to, scratch.data() + at, copy.bytes);
      at += copy.bytes;
    }
  }
  x.mask = mask;
}

// imm: the function.
void return_from(Lanes& x, const Inst& i) {
  const ProgramImpl& program = *x.launch->program;
  const Function& callee = program.functions[i.imm];
  const u32 executing = x.mask;
  u32 targets[kWarpLanes];
  u32 sites[kWarpLanes];
  std::memcpy(targets, x.in<u32>(callee.return_pc), sizeof targets);  // restored frames overwrite these rows
  std::memcpy(sites, x.in<u32>(callee.return_site), sizeof sites);
  for (u32 left = executing; left != 0;) {
    const u32 site_index = sites[first_lane(left)];
    u32 same = 0;
    for (u32 rest = left; rest != 0; rest &= rest - 1)
      if (sites[first_lane(rest)] == site_index) same |= 1u << first_lane(rest);
    left &= ~same;
    const CallSite& site = program.call_sites[site_index];
    x.mask = same;
    if (site.callee != ~0u) {
      return_results(x, site, site.out);
      continue;
    }
    std::vector<ParameterCopy> copies;
    std::string problem;
    if (!match_parameters(program, site, callee, false, copies, problem))
      throw LaunchFault{Fault::illegal_instruction, problem, first_lane(same)};
    return_results(x, site, copies);
  }
  x.mask = executing;
  branch_each(x, [&](u32 lane) { return targets[lane]; });
}

void return_from_kernel(Lanes& x, const Inst&) {
  exit_lanes(x);
}

void lower_ret(Lowering& l) {
  l.take("uni");
  l.expect_count(0);
  if (l.function().entry) return l.emit(&return_from_kernel);
  l.inst.imm = l.parser().function_index();
  l.emit(&return_from);
}

std::vector<u32> variables_of(Lowering& l, const Operand& list) {
  if (list.kind != OperandKind::vector) l.fail("parameters must be in parentheses");
  std::vector<u32> result;
  for (const Operand& part : list.parts) {
    if (part.kind != OperandKind::symbol || l.program().variables[part.index].space != Space::local)
      l.fail("parameter is no .param variable");
    result.push_back(part.index);
  }
  return result;
}

// call{.uni} {(result),} function{, (parameters)}{, prototype};
void lower_call(Lowering& l) {
  l.take("uni");
  l.expect_count(1, 4);
  CallSite site;
  site.line = l.inst.line;
  site.caller = l.parser().function_index();
  size_t at = 0;
  if (l.operand(0).kind == OperandKind::vector) site.results = variables_of(l, l.operand(at++));
  if (at >= l.count()) l.fail("has no target");
  const Operand& target = l.operand(at++);
  if (at < l.count() && l.operand(at).kind == OperandKind::vector)
    site.arguments = variables_of(l, l.operand(at++));
  const u32 index = static_cast<u32>(l.program().call_sites.size());
  l.inst.imm = index;
  if (target.kind == OperandKind::function) {
    if (at != l.count()) l.fail("has too many operands");
    site.callee = target.index;
  } else if (target.kind == OperandKind::reg && target.reg.bytes == 8) {
    const bool known = at + 1 == l.count() && l.operand(at).kind == OperandKind::name &&
                       l.parser().has_prototype(l.operand(at).name);
    if (!known) l.fail("an indirect call needs a prototype of this function");
    l.inst.a = target.reg.place;
  } else {
    l.fail("target is no function");
  }
  l.program().call_sites.push_back(std::move(site));
  l.function().calls.push_back(index);
  l.emit(target.kind == OperandKind::function ? &call : &call_indirect);
}

}  // namespace

void add_call_opcodes(OpcodeTable& table) {
  table["call"] = &lower_call;
  table["ret"] = &lower_ret;
}

}  // namespace gpupool::softgpu::engine
