#include "hostd/softgpu/engine/memory.hpp"

#include <cstdio>

namespace gpupool::softgpu::engine {
namespace {

[[noreturn]] void fault(Fault kind, u32 lane, u64 address, u32 bytes, const char* what) {
  char text[128];
  std::snprintf(text, sizeof text, "%s: address 0x%llx, %u bytes", what,
                static_cast<unsigned long long>(address), bytes);
  throw LaunchFault{kind, text, lane};
}

void check_alignment(u32 lane, u64 address, u32 bytes) {
  if ((address & (bytes - 1)) != 0)
    fault(Fault::misaligned_address, lane, address, bytes, "misaligned access");
}

u8* locate_global(Lanes& x, const Inst& i, u32 lane, u64 address, u32 bytes) {
  check_alignment(lane, address, bytes);
  CachedRange& range = x.ranges[i.site];
  const u64 at = address - range.begin;
  if (at < range.bytes && bytes <= range.bytes - at) return reinterpret_cast<u8*>(address);
  u64 begin = 0;
  u64 end = 0;
  if (!x.launch->memory->range_of(address, begin, end) || address < begin || address >= end ||
      bytes > end - address)
    fault(Fault::illegal_address, lane, address, bytes, "access to global memory that is not allocated");
  range = {begin, end - begin};
  return reinterpret_cast<u8*>(address);
}

u8* locate_shared(Lanes& x, u32 lane, u64 offset, u32 bytes) {
  check_alignment(lane, offset, bytes);
  if (offset >= x.launch->shared_bytes || bytes > x.launch->shared_bytes - offset)
    fault(Fault::illegal_address, lane, offset, bytes, "access beyond shared memory");
  return x.block->shared + offset;
}

u8* locate_local(Lanes& x, u32 lane, u64 offset, u32 bytes) {
  const u32 size = x.launch->kernel->local_bytes;
  check_alignment(lane, offset, bytes);
  if (offset >= size || bytes > size - offset)
    fault(Fault::illegal_address, lane, offset, bytes, "access beyond local memory");
  return x.warp->local + static_cast<u64>(lane) * size + offset;
}

u8* locate_param(Lanes& x, u32 lane, u64 offset, u32 bytes) {
  std::vector<u8>& parameters = x.launch->parameters;
  check_alignment(lane, offset, bytes);
  if (offset >= parameters.size() || bytes > parameters.size() - offset)
    fault(Fault::illegal_address, lane, offset, bytes, "access beyond the kernel's parameters");
  return parameters.data() + offset;
}

u8* locate_any(Lanes& x, const Inst& i, u32 lane, u64 address, u32 bytes) {
  if (address >> 48 != 1) return locate_global(x, i, lane, address, bytes);
  const u64 offset = address & (kWindowSpan - 1);
  switch (address & ~(kWindowSpan - 1)) {
    case kSharedWindow:
      return locate_shared(x, lane, offset, bytes);
    case kLocalWindow:
      return locate_local(x, lane, offset, bytes);
    case kParamWindow:
      return locate_param(x, lane, offset, bytes);
    default:
      fault(Fault::illegal_address, lane, address, bytes, "access outside every memory");
  }
}

template <typename T>
void add_offset(Lanes& x, const Inst& i, u64 (&addresses)[kWarpLanes]) {
  const T* base = x.in<T>(i.a);
  const T offset = static_cast<T>(i.imm);
  each_lane(x.mask,
            [&addresses, base, offset](u32 lane) { addresses[lane] = static_cast<T>(base[lane] + offset); });
}

// Whether all addresses lie in one range, aligned: the usual case. Differences are taken instead of
// comparisons, and their signs collected, which vectorises; ranges are far below 2^63 bytes.
bool all_inside(const u64 (&addresses)[kWarpLanes], u64 begin, u64 size, u32 bytes) {
  if (size < bytes) return false;
  const u64 last = size - bytes;
  u64 outside = 0;
  u64 low = 0;
  for (u32 lane = 0; lane < kWarpLanes; ++lane) {
    const u64 at = addresses[lane] - begin;
    outside |= at | (last - at);
    low |= addresses[lane];
  }
  return outside >> 63 == 0 && (low & (bytes - 1)) == 0;
}

}  // namespace

template <Space kSpace>
void locate(Lanes& x, const Inst& i, u32 bytes, Pointers& pointers) {
  u64 addresses[kWarpLanes];
  if ((i.flags & kAddress32) != 0)
    add_offset<u32>(x, i, addresses);
  else
    add_offset<u64>(x, i, addresses);
  if constexpr (kSpace == Space::global || kSpace == Space::generic) {
    const CachedRange& range = x.ranges[i.site];
    if (x.mask == ~0u && all_inside(addresses, range.begin, range.bytes, bytes)) {
      for (u32 lane = 0; lane < kWarpLanes; ++lane) pointers[lane] = reinterpret_cast<u8*>(addresses[lane]);
      return;
    }
  }
  if constexpr (kSpace == Space::shared) {
    if (x.mask == ~0u && all_inside(addresses, 0, x.launch->shared_bytes, bytes)) {
      u8* const base = x.block->shared;
      for (u32 lane = 0; lane < kWarpLanes; ++lane) pointers[lane] = base + addresses[lane];
      return;
    }
  }
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    if constexpr (kSpace == Space::global)
      pointers[lane] = locate_global(x, i, lane, addresses[lane], bytes);
    else if constexpr (kSpace == Space::shared)
      pointers[lane] = locate_shared(x, lane, addresses[lane], bytes);
    else if constexpr (kSpace == Space::local)
      pointers[lane] = locate_local(x, lane, addresses[lane], bytes);
    else if constexpr (kSpace == Space::param)
      pointers[lane] = locate_param(x, lane, addresses[lane], bytes);
    else
      pointers[lane] = locate_any(x, i, lane, addresses[lane], bytes);
  }
}

template void locate<Space::global>(Lanes&, const Inst&, u32, Pointers&);
template void locate<Space::shared>(Lanes&, const Inst&, u32, Pointers&);
template void locate<Space::local>(Lanes&, const Inst&, u32, Pointers&);
template void locate<Space::param>(Lanes&, const Inst&, u32, Pointers&);
template void locate<Space::generic>(Lanes&, const Inst&, u32, Pointers&);

bool shared_offsets(Lanes& x, const Inst& i, u32 bytes, u32 (&offsets)[kWarpLanes]) {
  const u32 size = x.launch->shared_bytes;
  if (x.mask != ~0u || (i.flags & kAddress32) == 0 || size < bytes) return false;
  const u32* base = x.in<u32>(i.a);
  const u32 offset = static_cast<u32>(i.imm);
  const u32 last = size - bytes;
  u32 outside = 0;
  u32 low = 0;
  for (u32 lane = 0; lane < kWarpLanes; ++lane) {
    const u32 at = base[lane] + offset;
    offsets[lane] = at;
    outside |= at | (last - at);
    low |= at;
  }
  return outside >> 31 == 0 && (low & (bytes - 1)) == 0;
}

u64 valid_bytes(Lanes& x, u32 lane, u64 address) {
  (void)lane;
  const u64 offset = address & (kWindowSpan - 1);
  u64 begin = 0;
  u64 end = 0;
  switch (address >> 48 == 1 ? address & ~(kWindowSpan - 1) : 0) {
    case 0:
      return x.launch->memory->range_of(address, begin, end) && address >= begin && address < end
                 ? end - address
                 : 0;
    case kSharedWindow:
      return offset < x.launch->shared_bytes ? x.launch->shared_bytes - offset : 0;
    case kLocalWindow:
      return offset < x.launch->kernel->local_bytes ? x.launch->kernel->local_bytes - offset : 0;
    case kParamWindow:
      return offset < x.launch->parameters.size() ? x.launch->parameters.size() - offset : 0;
    default:
      return 0;
  }
}

u8* locate_generic(Lanes& x, u32 lane, u64 address, u32 bytes) {
  if (valid_bytes(x, lane, address) < bytes)
    fault(Fault::illegal_address, lane, address, bytes, "access outside every memory");
  const u64 offset = address & (kWindowSpan - 1);
  switch (address >> 48 == 1 ? address & ~(kWindowSpan - 1) : 0) {
    case kSharedWindow:
      return x.block->shared + offset;
    case kLocalWindow:
      return x.warp->local + static_cast<u64>(lane) * x.launch->kernel->local_bytes + offset;
    case kParamWindow:
      return x.launch->parameters.data() + offset;
    default:
      return reinterpret_cast<u8*>(address);
  }
}

void lower_address(Lowering& l, const Operand& operand, Space space) {
  if (operand.kind != OperandKind::address) l.fail("an address in brackets is missing");
  const Operand& base = operand.parts[0];
  l.inst.site = l.program().sites++;
  if (base.kind == OperandKind::reg) {
    if (base.reg.bytes != 4 && base.reg.bytes != 8) l.fail("an address has 32 or 64 bits");
    if (base.reg.bytes == 4) l.inst.flags |= kAddress32;
    l.inst.a = base.reg.place;
    l.inst.imm = static_cast<u64>(operand.offset);
    return;
  }
  if (base.kind == OperandKind::integer) {
    l.inst.a = l.program().constant_row(base.value + static_cast<u64>(operand.offset), 8);
    return;
  }
  if (base.kind != OperandKind::symbol) l.fail("address of unknown '" + std::string(base.name) + "'");
  const Variable& variable = l.program().variables[base.index];
  const bool fits = variable.space == space || (space == Space::generic && variable.global != ~0u) ||
                    (space == Space::param && variable.space == Space::local);
  if (!fits) l.fail("'" + variable.name + "' is in another state space");
  if (variable.space == Space::shared) {
    l.inst.a = l.parser().initial_register(Initial::shared_variable, 4, base.index);
    l.inst.flags |= kAddress32;
    l.inst.imm = static_cast<u64>(operand.offset);
  } else if (variable.space == Space::local) {
    l.inst.a = l.program().local_row(l.parser().function_index(),
                                     static_cast<i64>(variable.offset) + operand.offset, 8);
  } else if (variable.space == Space::param) {
    l.inst.a = l.program().constant_row(variable.offset + static_cast<u64>(operand.offset), 8);
  } else {
    l.inst.a = l.program().address_row(base.index, operand.offset, 8);
  }
}

Space take_space(Lowering& l) {
  if (l.take("global")) return Space::global;
  if (l.take("shared") || l.take("shared::cta") || l.take("shared::cluster")) return Space::shared;
  if (l.take("local")) return Space::local;
  if (l.take("const")) return Space::constant;
  if (l.take("param") || l.take("param::entry") || l.take("param::func")) return Space::param;
  return Space::generic;
}

void skip_cache_hints(Lowering& l) {
  l.skip_any({"ca",
              "cg",
              "cs",
              "lu",
              "cv",
              "wb",
              "wt",
              "nc",
              "unified",
              "L1::evict_normal",
              "L1::evict_unchanged",
              "L1::evict_first",
              "L1::evict_last",
              "L1::no_allocate",
              "L2::evict_normal",
              "L2::evict_first",
              "L2::evict_last",
              "L2::64B",
              "L2::128B",
              "L2::256B"});
}

}  // namespace gpupool::softgpu::engine
