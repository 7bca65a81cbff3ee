// Where a memory access of each lane lands: addresses to checked pointers.
#pragma once

#include "hostd/softgpu/engine/lower.hpp"

namespace gpupool::softgpu::engine {

// flags of memory instructions
enum MemoryFlag : u32 {
  kAddress32 = 1 << 8,  // the base register has 32 bits
  kVectorShift = 9,     // two bits: log2 of the vector length
  kVectorMask = 3 << kVectorShift,
  kSpins = 1 << 12,  // volatile and synchronising accesses: what loops that wait are made of
};

using Pointers = u8* [kWarpLanes];

// Fills `pointers` for the executing lanes: `bytes` at base + imm. Throws LaunchFault when a lane may not go
// there.
template <Space kSpace>
void locate(Lanes& x, const Inst& i, u32 bytes, Pointers& pointers);

// The usual access to shared memory: all lanes, 32-bit addresses, all within it and aligned. False when it is
// not so; locate() then says what is wrong.
bool shared_offsets(Lanes& x, const Inst& i, u32 bytes, u32 (&offsets)[kWarpLanes]);

// One address in any space, for what goes through memory byte by byte (strings of printf).
u8* locate_generic(Lanes& x, u32 lane, u64 address, u32 bytes);
// How many bytes from `address` on are valid; 0 when it is not.
u64 valid_bytes(Lanes& x, u32 lane, u64 address);

// Lowers `[base+offset]`: sets inst.a, inst.imm and kAddress32.
void lower_address(Lowering& l, const Operand& operand, Space space);
// The space named by the modifiers, generic when there is none.
Space take_space(Lowering& l);
// Hints about caches and orders that need nothing here.
void skip_cache_hints(Lowering& l);

// Picks f<Space>() for a space in memory.
template <typename F>
Handler for_space(Space space, F f) {
  switch (space) {
    case Space::global:
    case Space::constant:
      return f.template operator()<Space::global>();
    case Space::shared:
      return f.template operator()<Space::shared>();
    case Space::local:
      return f.template operator()<Space::local>();
    case Space::param:
      return f.template operator()<Space::param>();
    default:
      return f.template operator()<Space::generic>();
  }
}

}  // namespace gpupool::softgpu::engine
