// bra, brx, exit, trap and the like. Calls are in exec_call.cpp.
#include "hostd/softgpu/engine/exec.hpp"

namespace gpupool::softgpu::engine {
namespace {

void branch(Lanes& x, const Inst& i) {
  branch_to(x, static_cast<u32>(i.imm));
}

// a: the index, imm the first entry of the table, ~b its length.
void branch_indexed(Lanes& x, const Inst& i) {
  const u32* index = x.in<u32>(i.a);
  const u32 count = static_cast<u32>(~i.b);
  const u32* table = x.launch->program->tables.data() + i.imm;
  for (u32 left = x.mask; left != 0; left &= left - 1)
    if (const u32 lane = first_lane(left); index[lane] >= count)
      throw LaunchFault{Fault::illegal_instruction, "brx.idx beyond its targets", lane};
  u32 targets[kWarpLanes];
  for (u32 left = x.mask; left != 0; left &= left - 1)
    targets[first_lane(left)] = table[index[first_lane(left)]];
  branch_each(x, [&](u32 lane) { return targets[lane]; });
}

void lower_bra(Lowering& l) {
  l.take("uni");
  l.expect_count(1);
  if (l.operand(0).kind != OperandKind::name) l.fail("target is no label");
  l.inst.flags |= kBranch;
  l.parser().use_label(l.operand(0).name, static_cast<u32>(l.function().code.size()), l.inst.line);
  l.emit(&branch);
}

void lower_brx(Lowering& l) {
  if (!l.take("idx")) l.unsupported();
  l.take("uni");
  l.expect_count(2);
  const BranchTable* table =
      l.operand(1).kind == OperandKind::name ? l.parser().branch_table(l.operand(1).name) : nullptr;
  if (table == nullptr) l.fail("unknown branch targets");
  l.inst.a = l.source(0, Type::u32);
  l.inst.imm = table->first;
  l.inst.flags |= kTable;
  l.inst.b = ~static_cast<Place>(table->count);  // a number; link() moves only places >= 0
  l.emit(&branch_indexed);
}

void exit_thread(Lanes& x, const Inst&) {
  exit_lanes(x);
}

void trap(Lanes& x, const Inst&) {
  throw LaunchFault{Fault::trap, "trap instruction", first_lane(x.mask)};
}

// Gives the rest of this group's turn to others.
void yield_turn(Lanes& x, const Inst&) {
  x.patience = 1;
}

void fence(Lanes&, const Inst&) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void lower_exit(Lowering& l) {
  l.expect_count(0);
  l.emit(&exit_thread);
}

void lower_trap(Lowering& l) {
  l.expect_count(0);
  l.emit(&trap);
}

void lower_nanosleep(Lowering& l) {
  l.take_type();
  l.expect_count(1);
  l.source(0, Type::u32);
  l.emit(&yield_turn);
}

// membar.{cta,gl,sys}, fence{.sc,.acq_rel,.acquire,.release}{.cta,.gpu,...}, fence.proxy.*: all are full
// fences here.
void lower_fence(Lowering& l) {
  l.skip_any({"sc", "acq_rel", "acquire", "release", "cta", "cluster", "gpu", "sys", "gl", "level::cta",
              "level::gl"});
  if (l.take("proxy")) l.skip_any({"alias", "async", "async::global", "async::shared::cta", "generic"});
  l.expect_count(0);
  l.emit(&fence);
}

// Instructions that tell the GPU something about scheduling of grids and registers, which has no effect here:
// grids run one after the other.
void lower_nothing(Lowering& l) {
  l.skip_any({"launch_dependents", "wait", "inc", "dec", "sync", "aligned", "u32"});
  l.finish_modifiers();
}

}  // namespace

void add_control_opcodes(OpcodeTable& table) {
  table["bra"] = &lower_bra;
  table["brx"] = &lower_brx;
  table["exit"] = &lower_exit;
  table["trap"] = &lower_trap;
  table["brkpt"] = &lower_trap;
  table["nanosleep"] = &lower_nanosleep;
  table["membar"] = &lower_fence;
  table["fence"] = &lower_fence;
  table["griddepcontrol"] = &lower_nothing;
  table["setmaxnreg"] = &lower_nothing;
  add_call_opcodes(table);
}

}  // namespace gpupool::softgpu::engine
