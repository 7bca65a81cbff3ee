// One parsed instruction, names resolved, before it is checked and lowered.
#pragma once

#include <string_view>
#include <vector>

#include "hostd/softgpu/engine/ir.hpp"

namespace gpupool::softgpu::engine {

struct Register {
  Place place = kNoPlace;
  u32 bytes = 0;       // 0: a predicate
  bool fixed = false;  // a special register: never a destination
};

enum class OperandKind : u8 {
  reg,
  integer,
  real32,
  real64,
  symbol,
  function,
  name,
  address,
  vector,
  pair,
  sink
};

struct Operand {
  OperandKind kind = OperandKind::sink;
  bool negated = false;  // !p
  Register reg;
  u64 value = 0;               // integer, bits of real32 and real64
  u32 index = 0;               // symbol: variable; function: function
  i64 offset = 0;              // symbol+offset, address: [base+offset]
  std::string_view name;       // label or other word that is no symbol
  std::vector<Operand> parts;  // address: base; vector: elements; pair d|p: both
};

struct Statement {
  u32 line = 0;
  std::string_view opcode;
  std::vector<std::string_view> modifiers;
  std::vector<Operand> operands;
  Operand guard;
  bool guarded = false;
};

}  // namespace gpupool::softgpu::engine
