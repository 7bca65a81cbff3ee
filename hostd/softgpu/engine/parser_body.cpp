// Function bodies: scopes, registers, labels.
#include <algorithm>

#include "hostd/softgpu/engine/parser.hpp"

namespace gpupool::softgpu::engine {

Place Parser::new_register(u32 bytes) {
  Function& f = function();
  if (f.frame_bytes > (1u << 29)) fail("more registers than the software GPU has room for");
  ++f.register_count;
  if (bytes != 0) {
    const Place place = static_cast<Place>(f.frame_bytes);
    f.frame_bytes += row_bytes(bytes);
    f.saved_rows.push_back({static_cast<u32>(place), row_bytes(bytes) / kWarpLanes});
    return place;
  }
  if (predicates_left_ == 0) {
    predicate_row_ = f.frame_bytes;
    predicates_left_ = 16;
    f.frame_bytes += 64;
  }
  const u32 place = predicate_row_ + 4 * (16 - predicates_left_--);
  f.saved_rows.push_back({place, 0});
  return static_cast<Place>(place);
}

Place Parser::initial_register(Initial what, u32 bytes, u32 variable) {
  const u64 key = static_cast<u64>(what) << 40 | static_cast<u64>(bytes) << 32 | variable;
  const auto [found, added] = initial_registers_.try_emplace(key, kNoPlace);
  if (added) {
    found->second = new_register(bytes);
    function().initial.push_back({what, found->second, bytes, variable});
    if (what == Initial::shared_variable &&
        std::ranges::find(function().shared, variable) == function().shared.end())
      function().shared.push_back(variable);
  }
  return found->second;
}

Place Parser::carry_register() {
  if (carry_ == kNoPlace) carry_ = new_register(0);
  return carry_;
}

void Parser::use_label(std::string_view name, u32 inst, u32 line) {
  label_uses_.push_back({scopes_.back().number, name, inst, ~0u, line});
}

const BranchTable* Parser::branch_table(std::string_view name) const {
  const auto found = branch_tables_.find(name);
  return found == branch_tables_.end() ? nullptr : &found->second;
}

void Parser::body() {
  if (!function().entry) {
    function().return_pc = new_register(4);
    function().return_site = new_register(4);
  }
  block();
  Statement end;  // falling off the end returns
  end.opcode = "ret";
  end.line = peek().line;
  lower(*this, end);
  resolve_labels();
}

void Parser::block() {
  if (scopes_.size() > 64) fail("blocks are nested too deeply");
  expect('{');
  while (!peek().is('}')) {
    if (peek().kind == TokenKind::end) fail("'}' is missing");
    statement();
  }
  next();
}

void Parser::statement() {
  if (accept(';')) return;
  if (peek().is('{')) {
    Scope& scope = scopes_.emplace_back();
    scope.number = scope_count_++;
    scope_parents_.push_back(scopes_[scopes_.size() - 2].number);
    block();
    scopes_.pop_back();
    return;
  }
  if (peek().kind == TokenKind::dot) return body_directive();
  if (peek().kind == TokenKind::word && peek(1).is(':')) {
    const std::string_view name = next().text;
    next();
    if (peek().is_dot("callprototype")) return call_prototype(name);
    if (peek().is_dot("branchtargets")) return branch_targets(name);
    labels_.push_back({scopes_.back().number, name, static_cast<u32>(function().code.size())});
    return;
  }
  instruction();
}

void Parser::body_directive() {
  const Token token = next();
  const std::string_view name = token.text;
  if (name == "reg") return register_declaration();
  if (name == "local" || name == "param") return variable_declaration(Space::local, false);
  if (name == "shared") return variable_declaration(Space::shared, false);
  if (name == "global") return variable_declaration(Space::global, false);
  if (name == "const") return variable_declaration(Space::constant, false);
  if (name == "extern" && accept_dot("shared")) return variable_declaration(Space::shared, true);
  if (name == "loc") return skip_line_of(token.line);
  if (name == "pragma") {
    while (!peek().is(';') && peek().kind != TokenKind::end) next();
    return expect(';');
  }
  throw LoadError(token.line, "directive ." + std::string(name) + " is not supported by the software GPU");
}

void Parser::register_declaration() {
  if (peek().kind != TokenKind::dot) fail("register without a type");
  const auto type = type_of(peek().text);
  if (!type)
    fail("registers of type ." + std::string(peek().text) + " are not supported by the software GPU");
  next();
  Scope& scope = scopes_.back();
  do {
    const std::string_view name = expect_word();
    if (accept('<')) {
      scope.ranges[name] = Scope::Range{expect_integer(), type_bytes(*type)};
      expect('>');
      continue;
    }
    scope.names[name] =
        Symbol{Symbol::Kind::reg, Register{new_register(type_bytes(*type)), type_bytes(*type)}, 0};
  } while (accept(','));
  expect(';');
}

// `name: .callprototype (.param .b32 _) _ (.param .b64 _);`: the callee brings its own layout, so only the
// name counts.
void Parser::call_prototype(std::string_view label) {
  prototypes_[label] = peek().line;
  while (!peek().is(';') && peek().kind != TokenKind::end) next();
  expect(';');
}

void Parser::branch_targets(std::string_view label) {
  next();
  BranchTable table{static_cast<u32>(function().tables.size()), 0};
  do {
    const u32 line = peek().line;
    label_uses_.push_back({scopes_.back().number, expect_word(), ~0u, table.first + table.count++, line});
    function().tables.push_back(0);
  } while (accept(','));
  branch_tables_[label] = table;
  expect(';');
}

void Parser::instruction() {
  Statement statement;
  statement.line = peek().line;
  if (accept('@')) {
    const bool negated = accept('!');
    statement.guard = operand_word();
    statement.guard.negated = negated;
    statement.guarded = true;
    if (statement.guard.kind != OperandKind::reg || statement.guard.reg.bytes != 0)
      fail("a guard must be a predicate register");
  }
  if (peek().kind != TokenKind::word)
    fail("expected an instruction, found '" + std::string(peek().text) + "'");
  statement.opcode = next().text;
  while (peek().kind == TokenKind::dot) statement.modifiers.push_back(next().text);
  require_opcode(statement);
  if (!peek().is(';')) operand_list(statement);
  expect(';');
  lower(*this, statement);
}

void Parser::operand_list(Statement& statement) {
  do statement.operands.push_back(operand());
  while (accept(','));
}

Operand Parser::operand() {
  Operand result;
  if (peek().is('[')) return address();
  if (peek().is('{') || peek().is('(')) {
    const char close = next().is('{') ? '}' : ')';
    result.kind = OperandKind::vector;
    if (accept(close)) return result;
    do result.parts.push_back(operand());
    while (accept(','));
    expect(close);
  } else if (accept('!')) {
    result = operand_word();
    result.negated = true;
  } else if (accept('-')) {
    result = number(true);
  } else if (peek().kind == TokenKind::word) {
    result = operand_word();
  } else {
    result = number(false);
  }
  if (accept('|')) {
    Operand pair;
    pair.kind = OperandKind::pair;
    pair.parts.push_back(std::move(result));
    pair.parts.push_back(operand_word());
    return pair;
  }
  return result;
}

Operand Parser::number(bool negative) {
  const Token token = next();
  Operand result;
  result.value = token.value;
  switch (token.kind) {
    case TokenKind::integer:
      result.kind = OperandKind::integer;
      if (negative) result.value = 0 - result.value;
      return result;
    case TokenKind::real32:
      result.kind = OperandKind::real32;
      if (negative) result.value ^= 0x8000'0000u;
      return result;
    case TokenKind::real64:
      result.kind = OperandKind::real64;
      if (negative) result.value ^= 1ull << 63;
      return result;
    default:
      throw LoadError(token.line, "expected an operand, found '" + std::string(token.text) + "'");
  }
}

// `[%rd1+8]`, `[name]`, `[%r1+-4]`, `[16]`.
Operand Parser::address() {
  expect('[');
  Operand result;
  result.kind = OperandKind::address;
  result.parts.push_back(peek().kind == TokenKind::word ? operand_word() : number(accept('-')));
  result.offset = result.parts[0].offset;
  while (peek().is('+') || peek().is('-')) {
    bool minus = next().is('-');
    if (accept('-')) minus = !minus;
    const i64 value = static_cast<i64>(expect_integer());
    result.offset += minus ? -value : value;
  }
  if (!peek().is(']')) fail("address operand of this form is not supported by the software GPU");
  next();
  return result;
}

bool Parser::find_in_ranges(std::string_view name, Symbol& symbol) {
  size_t digits = name.size();
  while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') --digits;
  if (digits == name.size() || name.size() - digits > 9) return false;
  u64 number = 0;
  for (const char c : name.substr(digits)) number = number * 10 + static_cast<u64>(c - '0');
  for (size_t i = scopes_.size(); i-- > 0;) {
    const auto found = scopes_[i].ranges.find(name.substr(0, digits));
    if (found == scopes_[i].ranges.end() || number >= found->second.count) continue;
    symbol = Symbol{Symbol::Kind::reg, Register{new_register(found->second.bytes), found->second.bytes}, 0};
    scopes_[i].names[name] = symbol;
    return true;
  }
  return false;
}

const Symbol* Parser::find(std::string_view name) {
  for (size_t i = scopes_.size(); i-- > 0;)
    if (const auto found = scopes_[i].names.find(name); found != scopes_[i].names.end())
      return &found->second;
  return nullptr;
}

Operand Parser::operand_word() {
  const Token token = peek();
  const std::string_view name = expect_word();
  Operand result;
  if (name == "_") return result;
  Symbol made;
  const Symbol* symbol = find(name);
  if (symbol == nullptr && find_in_ranges(name, made)) symbol = &made;
  if (symbol == nullptr && name == "WARP_SZ") {
    result.kind = OperandKind::integer;
    result.value = kWarpLanes;
    return result;
  }
  if (symbol == nullptr && name[0] == '%') return special_register(name, token.line);
  if (symbol == nullptr) {
    result.kind = OperandKind::name;
    result.name = name;
    return result;
  }
  result.name = name;
  switch (symbol->kind) {
    case Symbol::Kind::reg:
      result.kind = OperandKind::reg;
      result.reg = symbol->reg;
      break;
    case Symbol::Kind::function:
      result.kind = OperandKind::function;
      result.index = symbol->index;
      break;
    case Symbol::Kind::variable:
      result.kind = OperandKind::symbol;
      result.index = symbol->index;
      while (scopes_.size() > 1 && (peek().is('+') || peek().is('-')) && peek(1).kind == TokenKind::integer) {
        const bool minus = next().is('-');
        const i64 value = static_cast<i64>(expect_integer());
        result.offset += minus ? -value : value;
      }
      break;
  }
  return result;
}

void Parser::resolve_labels() {
  for (const LabelUse& use : label_uses_) {
    const Label* target = nullptr;
    for (u32 scope = use.scope; target == nullptr; scope = scope_parents_[scope]) {
      for (const Label& label : labels_)
        if (label.scope == scope && label.name == use.name) target = &label;
      if (scope == 0) break;
    }
    if (target == nullptr) throw LoadError(use.line, "label '" + std::string(use.name) + "' is not defined");
    if (use.inst != ~0u)
      function().code[use.inst].imm = target->pc;
    else
      function().tables[use.table] = target->pc;
  }
}

}  // namespace gpupool::softgpu::engine
