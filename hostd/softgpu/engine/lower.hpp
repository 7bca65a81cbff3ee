// The checked step from a parsed instruction to an executable one. A lowering function takes the modifiers
// and operands that it understands from the Lowering; whatever is left over is an error, so that no modifier
// is ever ignored.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <unordered_map>

#include "hostd/softgpu/engine/machine.hpp"
#include "hostd/softgpu/engine/parser.hpp"

namespace gpupool::softgpu::engine {

class Lowering {
 public:
  Lowering(Parser& parser, const Statement& statement);

  // Modifiers, in any order.
  bool take(std::string_view modifier);
  void skip_any(std::initializer_list<std::string_view> modifiers);  // hints without effect here
  bool has(std::string_view modifier) const;
  std::optional<Type> take_type_if_any();  // the first type among the modifiers
  Type take_type();
  void finish_modifiers();

  // Operands. Sizes are checked against the instruction's type.
  size_t count() const { return statement_.operands.size(); }
  void expect_count(size_t least, size_t most);
  void expect_count(size_t exact) { expect_count(exact, exact); }
  const Operand& operand(size_t index) const { return statement_.operands[index]; }
  Place source(size_t index, Type type) { return source(operand(index), type); }
  Place source(const Operand& operand, Type type);
  Place destination(size_t index, Type type) { return destination(operand(index), type); }
  Place destination(const Operand& operand, Type type);
  Place predicate(const Operand& operand);  // no negation
  Place predicate_destination(const Operand& operand);
  // A register that may be wider than the type (ld, st, cvt): its bytes come back, 8-bit ones as 2.
  Place loose_source(const Operand& operand, Type type, u32& bytes);
  Place loose_destination(const Operand& operand, Type type, u32& bytes);
  // The address of a variable or function in its own space, as mov gives it. `extra` comes back for addresses
  // that are known only per kernel: it is to be added.
  Place symbol_address(const Operand& operand, u32 bytes);
  u64 immediate(size_t index);  // an integer constant
  std::optional<u64> immediate_if_any(size_t index) const;

  // Usual shapes: d, a / d, a, b / d, a, b, c of one type.
  void unary(Type type);
  void binary(Type type);
  void ternary(Type type);

  u32 add_list(const std::vector<Place>& places);
  void emit(Handler handler);  // finishes modifiers and appends `inst`

  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void unsupported() const;
  std::string name() const;  // opcode with modifiers
  std::string_view opcode() const { return statement_.opcode; }
  const Statement& statement() const { return statement_; }
  Parser& parser() { return parser_; }
  ProgramImpl& program() { return parser_.program(); }
  Function& function() { return parser_.function(); }

  Inst inst;

 private:
  Place constant(const Operand& operand, Type type, u32 bytes);

  Parser& parser_;
  const Statement& statement_;
  std::vector<std::string_view> modifiers_;
};

using LowerFunction = void (*)(Lowering&);
using OpcodeTable = std::unordered_map<std::string_view, LowerFunction>;

// Each family of instructions adds its opcodes.
void add_integer_opcodes(OpcodeTable& table);
void add_wide_opcodes(OpcodeTable& table);
void add_bit_opcodes(OpcodeTable& table);
void add_byte_opcodes(OpcodeTable& table);
void add_arithmetic_opcodes(OpcodeTable& table);
void add_math_opcodes(OpcodeTable& table);
void add_compare_opcodes(OpcodeTable& table);
void add_convert_opcodes(OpcodeTable& table);
void add_move_opcodes(OpcodeTable& table);
void add_memory_opcodes(OpcodeTable& table);
void add_atomic_opcodes(OpcodeTable& table);
void add_warp_opcodes(OpcodeTable& table);
void add_control_opcodes(OpcodeTable& table);
void add_call_opcodes(OpcodeTable& table);
void add_barrier_opcodes(OpcodeTable& table);
void add_special_opcodes(OpcodeTable& table);

}  // namespace gpupool::softgpu::engine
