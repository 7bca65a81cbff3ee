#include "hostd/softgpu/engine/lower.hpp"

#include <algorithm>
#include <bit>

namespace gpupool::softgpu::engine {
namespace {

const OpcodeTable& opcodes() {
  static const OpcodeTable table = [] {
    OpcodeTable t;
    add_integer_opcodes(t);
    add_wide_opcodes(t);
    add_bit_opcodes(t);
    add_byte_opcodes(t);
    add_arithmetic_opcodes(t);
    add_math_opcodes(t);
    add_compare_opcodes(t);
    add_convert_opcodes(t);
    add_move_opcodes(t);
    add_memory_opcodes(t);
    add_atomic_opcodes(t);
    add_warp_opcodes(t);
    add_control_opcodes(t);
    add_barrier_opcodes(t);
    add_special_opcodes(t);
    return t;
  }();
  return table;
}

u32 stored_bytes(u32 bytes) {
  return bytes == 1 ? 2 : bytes;
}

}  // namespace

void require_opcode(const Statement& statement) {
  if (opcodes().contains(statement.opcode)) return;
  std::string name(statement.opcode);
  for (const std::string_view modifier : statement.modifiers) name += "." + std::string(modifier);
  throw LoadError(statement.line, "instruction " + name + " is not supported by the software GPU");
}

void lower(Parser& parser, const Statement& statement) {
  require_opcode(statement);
  Lowering lowering(parser, statement);
  opcodes().at(statement.opcode)(lowering);
}

Lowering::Lowering(Parser& parser, const Statement& statement)
    : parser_(parser), statement_(statement), modifiers_(statement.modifiers) {
  inst.line = statement.line;
  if (statement.guarded) {
    inst.guard = statement.guard.reg.place;
    if (statement.guard.negated) inst.flags |= kGuardNegated;
  }
}

std::string Lowering::name() const {
  std::string result(statement_.opcode);
  for (const std::string_view modifier : statement_.modifiers) result += "." + std::string(modifier);
  return result;
}

void Lowering::fail(const std::string& what) const {
  throw LoadError(statement_.line, "instruction " + name() + ": " + what);
}

void Lowering::unsupported() const {
  throw LoadError(statement_.line, "instruction " + name() + " is not supported by the software GPU");
}

bool Lowering::take(std::string_view modifier) {
  const auto found = std::ranges::find(modifiers_, modifier);
  if (found == modifiers_.end()) return false;
  modifiers_.erase(found);
  return true;
}

void Lowering::skip_any(std::initializer_list<std::string_view> modifiers) {
  for (const std::string_view modifier : modifiers) take(modifier);
}

bool Lowering::has(std::string_view modifier) const {
  return std::ranges::find(modifiers_, modifier) != modifiers_.end();
}

std::optional<Type> Lowering::take_type_if_any() {
  for (auto it = modifiers_.begin(); it != modifiers_.end(); ++it) {
    if (const auto type = type_of(*it)) {
      modifiers_.erase(it);
      return type;
    }
  }
  return std::nullopt;
}

Type Lowering::take_type() {
  const auto type = take_type_if_any();
  if (!type) unsupported();
  return *type;
}

void Lowering::finish_modifiers() {
  if (!modifiers_.empty()) unsupported();
}

void Lowering::expect_count(size_t least, size_t most) {
  if (count() < least || count() > most) fail("has " + std::to_string(count()) + " operands");
}

// A number or an address as a row of constants.
Place Lowering::constant(const Operand& operand, Type type, u32 bytes) {
  const bool floating = type == Type::f32 || type == Type::f64 || type == Type::tf32;
  switch (operand.kind) {
    case OperandKind::integer:
      if (floating) fail("an integer constant where a floating point one belongs");
      return program().constant_row(operand.value, bytes);
    case OperandKind::real32:
      if (bytes == 4) return program().constant_row(operand.value, 4);
      if (bytes == 8) {
        const double value = static_cast<double>(std::bit_cast<float>(static_cast<u32>(operand.value)));
        return program().constant_row(std::bit_cast<u64>(value), 8);
      }
      fail("a floating point constant does not fit this operand");
    case OperandKind::real64:
      if (bytes == 8) return program().constant_row(operand.value, 8);
      if (bytes == 4)
        return program().constant_row(
            std::bit_cast<u32>(static_cast<float>(std::bit_cast<double>(operand.value))), 4);
      fail("a floating point constant does not fit this operand");
    default:
      fail("operand is neither a register nor a constant");
  }
}

Place Lowering::source(const Operand& operand, Type type) {
  const u32 bytes = type_bytes(type);
  if (type == Type::pred) return predicate(operand);
  if (operand.negated) fail("'!' before an operand that is no predicate");
  if (operand.kind != OperandKind::reg) return constant(operand, type, bytes);
  if (operand.reg.bytes == 0) fail("a predicate where a number belongs");
  if (stored_bytes(operand.reg.bytes) != stored_bytes(bytes))
    fail("operand has " + std::to_string(operand.reg.bytes * 8) + " bits, not " + std::to_string(bytes * 8));
  return operand.reg.place;
}

Place Lowering::destination(const Operand& operand, Type type) {
  const u32 bytes = type_bytes(type);
  if (operand.kind == OperandKind::sink) return parser_.new_register(bytes);
  if (type == Type::pred) return predicate_destination(operand);
  if (operand.kind != OperandKind::reg || operand.negated || operand.reg.fixed)
    fail("destination is no register");
  return source(operand, type);
}

Place Lowering::predicate(const Operand& operand) {
  if (operand.kind == OperandKind::integer) return program().constant_row(operand.value, 0);
  if (operand.kind != OperandKind::reg || operand.reg.bytes != 0) fail("operand is no predicate");
  return operand.reg.place;
}

Place Lowering::predicate_destination(const Operand& operand) {
  if (operand.kind == OperandKind::sink) return parser_.new_register(0);
  if (operand.kind != OperandKind::reg || operand.reg.bytes != 0 || operand.negated || operand.reg.fixed)
    fail("destination is no predicate");
  return operand.reg.place;
}

Place Lowering::loose_source(const Operand& operand, Type type, u32& bytes) {
  bytes = stored_bytes(type_bytes(type));
  if (operand.kind != OperandKind::reg) return source(operand, type);
  if (operand.reg.bytes == 0) fail("a predicate where a number belongs");
  if (stored_bytes(operand.reg.bytes) < bytes) fail("register is narrower than the type");
  bytes = stored_bytes(operand.reg.bytes);
  return operand.reg.place;
}

Place Lowering::loose_destination(const Operand& operand, Type type, u32& bytes) {
  bytes = stored_bytes(type_bytes(type));
  if (operand.kind == OperandKind::sink) return parser_.new_register(bytes);
  if (operand.kind != OperandKind::reg || operand.reg.fixed) fail("destination is no register");
  return loose_source(operand, type, bytes);
}

std::optional<u64> Lowering::immediate_if_any(size_t index) const {
  if (index >= count() || operand(index).kind != OperandKind::integer) return std::nullopt;
  return operand(index).value;
}

u64 Lowering::immediate(size_t index) {
  const auto value = immediate_if_any(index);
  if (!value) fail("operand " + std::to_string(index + 1) + " must be an integer constant");
  return *value;
}

void Lowering::unary(Type type) {
  expect_count(2);
  inst.d = destination(0, type);
  inst.a = source(1, type);
}

void Lowering::binary(Type type) {
  expect_count(3);
  inst.d = destination(0, type);
  inst.a = source(1, type);
  inst.b = source(2, type);
}

void Lowering::ternary(Type type) {
  expect_count(4);
  inst.d = destination(0, type);
  inst.a = source(1, type);
  inst.b = source(2, type);
  inst.c = source(3, type);
}

u32 Lowering::add_list(const std::vector<Place>& places) {
  std::vector<Place>& lists = function().lists;
  const u32 first = static_cast<u32>(lists.size());
  lists.insert(lists.end(), places.begin(), places.end());
  return first;
}

void Lowering::emit(Handler handler) {
  finish_modifiers();
  inst.run = handler;
  function().code.push_back(inst);
}

}  // namespace gpupool::softgpu::engine
