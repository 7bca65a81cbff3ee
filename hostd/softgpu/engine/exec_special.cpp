// cp.async, which copies at once here, createpolicy, and markers that mean nothing to this machine.
#include <algorithm>
#include <cstring>

#include "hostd/softgpu/engine/exec.hpp"
#include "hostd/softgpu/engine/memory.hpp"

namespace gpupool::softgpu::engine {
namespace {

enum CopyFlag : u32 { kTarget32 = 1 << 16, kSkipped = 1 << 17 };

// To [a] + low half of imm in shared memory, from [b] + high half of imm in global memory. c: bytes to read
// (the rest is zero) or, with kSkipped, a predicate that says to read nothing. e as a number (complemented):
// bytes to write.
void copy_async(Lanes& x, const Inst& i) {
  const u32 bytes = static_cast<u32>(~i.e);
  Inst to = i;
  to.imm = static_cast<u64>(static_cast<i64>(static_cast<i32>(i.imm)));
  to.flags = (i.flags & kTarget32) != 0 ? static_cast<u32>(kAddress32) : 0;
  Inst from = i;
  from.a = i.b;
  from.imm = static_cast<u64>(static_cast<i64>(i.imm) >> 32);
  from.flags = i.flags & kAddress32;
  Pointers targets;
  locate<Space::shared>(x, to, bytes, targets);
  u32 sizes[kWarpLanes];
  u32 reading = 0;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    sizes[lane] = bytes;
    if ((i.flags & kSkipped) != 0)
      sizes[lane] = (x.predicate(i.c) >> lane & 1) != 0 ? 0 : bytes;
    else if (i.c != kNoPlace)
      sizes[lane] = std::min(bytes, x.in<u32>(i.c)[lane]);
    if (sizes[lane] != 0) reading |= 1u << lane;
  }
  Pointers sources;
  const u32 mask = x.mask;
  x.mask = reading;
  if (reading != 0) locate<Space::global>(x, from, bytes, sources);
  x.mask = mask;
  for (u32 left = mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    std::memset(targets[lane], 0, bytes);
    if (sizes[lane] != 0) std::memcpy(targets[lane], sources[lane], sizes[lane]);
  }
}

void lower_copy_async(Lowering& l) {
  if (!l.take("async")) l.unsupported();
  if (l.take("commit_group") || l.take("wait_all")) {
    l.expect_count(0);
    return l.finish_modifiers();  // the copies have been made
  }
  if (l.take("wait_group")) {
    l.immediate(0);
    return l.finish_modifiers();
  }
  const bool around_l1 = l.take("cg");
  if (!around_l1 && !l.take("ca")) l.unsupported();
  if (!l.take("shared") && !l.take("shared::cta")) l.unsupported();
  if (!l.take("global")) l.unsupported();
  l.skip_any({"L2::64B", "L2::128B", "L2::256B"});
  const size_t policy = l.take("L2::cache_hint") ? 1 : 0;
  l.expect_count(3 + policy, 4 + policy);
  const u64 bytes = l.immediate(2);
  if (bytes != 16 && (around_l1 || (bytes != 4 && bytes != 8))) l.fail("copies 4, 8 or 16 bytes");
  lower_address(l, l.operand(1), Space::global);
  l.inst.b = l.inst.a;
  const u64 source_offset = l.inst.imm;
  const u32 flags = l.inst.flags;
  l.inst.flags &= ~static_cast<u32>(kAddress32);
  l.inst.imm = 0;
  lower_address(l, l.operand(0), Space::shared);
  l.inst.imm = (l.inst.imm & 0xffff'ffffu) | source_offset << 32;
  l.inst.flags = flags | ((l.inst.flags & kAddress32) != 0 ? static_cast<u32>(kTarget32) : 0);
  l.inst.e = ~static_cast<Place>(bytes);
  if (l.count() == 4 + policy) {
    const Operand& size = l.operand(3);
    if (size.kind == OperandKind::reg && size.reg.bytes == 0) {
      l.inst.flags |= kSkipped;
      l.inst.c = l.predicate(size);
      if (size.negated) l.unsupported();
    } else {
      l.inst.c = l.source(3, Type::u32);
    }
  }
  if (policy != 0) l.source(l.count() - 1, Type::b64);
  l.emit(&copy_async);
}

void zero(Lanes& x, const Inst& i) {
  u64* d = x.out<u64>(i.d);
  each_lane(x.mask, [=](u32 lane) { d[lane] = 0; });
}

// A cache policy is an opaque number; there is no cache to steer.
void lower_createpolicy(Lowering& l) {
  l.skip_any(
      {"fractional", "L2::evict_last", "L2::evict_first", "L2::evict_normal", "L2::evict_unchanged", "b64"});
  l.expect_count(1, 2);
  l.inst.d = l.destination(0, Type::b64);
  l.emit(&zero);
}

void lower_pmevent(Lowering& l) {
  l.take("mask");
  l.immediate(0);
  l.finish_modifiers();
}

}  // namespace

void add_special_opcodes(OpcodeTable& table) {
  table["cp"] = &lower_copy_async;
  table["createpolicy"] = &lower_createpolicy;
  table["pmevent"] = &lower_pmevent;
}

}  // namespace gpupool::softgpu::engine
