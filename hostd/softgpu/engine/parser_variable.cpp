// Variables: declarations, sizes, initial values.
#include <algorithm>
#include <cstring>

#include "hostd/softgpu/engine/float16.hpp"
#include "hostd/softgpu/engine/parser.hpp"

namespace gpupool::softgpu::engine {
namespace {

constexpr u64 kMaxVariableBytes = 1ull << 32;

u64 align_up(u64 value, u64 alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

// `.align 8 .b8`, `.v4 .f32`, `.u64 .ptr .global .align 16`: everything up to the name.
Parser::Declared Parser::declarator_type() {
  Declared declared;
  bool aligned = false;
  bool pointer = false;
  while (peek().kind == TokenKind::dot) {
    const std::string_view word = next().text;
    if (word == "align") {
      const u64 alignment = expect_integer();
      if (alignment == 0 || alignment > 4096 || (alignment & (alignment - 1)) != 0)
        fail("malformed alignment");
      if (!pointer) declared.alignment = alignment;
      aligned = aligned || !pointer;
    } else if (word == "v2" || word == "v4") {
      declared.vector = static_cast<u32>(word[1] - '0');
    } else if (word == "ptr") {
      pointer = true;
    } else if (pointer && (word == "global" || word == "const" || word == "shared" || word == "local")) {
      continue;  // what a pointer parameter points to: a hint
    } else if (const auto type = type_of(word); type && *type != Type::pred) {
      declared.type = *type;
    } else {
      fail("'." + std::string(word) + "' in a declaration is not supported by the software GPU");
    }
  }
  if (declared.type == Type::none) fail("declaration without a type");
  if (!aligned) declared.alignment = type_bytes(declared.type) * declared.vector;
  return declared;
}

void Parser::dimensions(Declared& declared) {
  while (accept('[')) {
    declared.array = true;
    if (accept(']')) {
      declared.unsized = true;
      continue;
    }
    const u64 count = expect_integer();
    if (count > kMaxVariableBytes || declared.count * count > kMaxVariableBytes) fail("array is too large");
    declared.count *= count;
    expect(']');
  }
}

u32 Parser::add_variable(const Declared& declared, Space space, bool external) {
  const u32 index = static_cast<u32>(program_.variables.size());
  Variable variable;
  variable.name = declared.name;
  variable.space = space;
  variable.alignment = declared.alignment;
  variable.external = external;
  variable.index = index;
  variable.size = declared.unsized ? 0 : declared.count * declared.vector * type_bytes(declared.type);
  if (variable.size > kMaxVariableBytes) fail("variable is too large");
  if (space == Space::local) {
    variable.offset = align_up(function().local_bytes, variable.alignment);
    if (variable.offset + variable.size > (1u << 24)) fail("more local memory than a thread can have");
    function().local_bytes = static_cast<u32>(variable.offset + variable.size);
  } else if (space == Space::param) {
    variable.offset = align_up(function().info.parameter_bytes, variable.alignment);
    if (variable.offset + variable.size > 32764) fail("more parameters than a kernel can have");
    function().info.parameter_bytes = static_cast<u32>(variable.offset + variable.size);
  }
  program_.variables.push_back(std::move(variable));
  scopes_.back().names[declared.name] = Symbol{Symbol::Kind::variable, {}, index};
  return index;
}

void Parser::variable_declaration(Space space, bool external) {
  const bool in_module = scopes_.size() == 1;
  const Declared type = declarator_type();
  do {
    Declared declared = type;
    declared.name = expect_word();
    dimensions(declared);
    const bool initialized = peek().is('=');
    if (declared.unsized && !initialized && !(external && space == Space::shared))
      fail("array '" + std::string(declared.name) + "' has no size");
    const bool in_memory = space == Space::global || space == Space::constant;
    if (in_memory && external)
      fail("external variable '" + std::string(declared.name) + "' is not supported by the software GPU");
    if (in_memory && in_module && scopes_[0].names.contains(declared.name))
      fail("'" + std::string(declared.name) + "' is defined twice");
    const u32 index = add_variable(declared, space, external);
    if (accept('=')) {
      if (!in_memory) fail("only .global and .const variables have initial values");
      initializer(program_.variables[index], declared);
    }
    if (in_memory) {
      Variable& variable = program_.variables[index];
      variable.global = static_cast<u32>(program_.global_variables.size());
      variable.initial.resize(variable.size);
      program_.global_variables.push_back(index);
    }
  } while (accept(','));
  expect(';');
}

void Parser::initializer(Variable& variable, const Declared& declared) {
  variable.initial.assign(variable.size, 0);
  u64 at = 0;
  if (peek().is('{'))
    initializer_list(variable, declared, at, 0);
  else
    initializer_value(variable, declared, at);
  if (declared.unsized) variable.size = at;
}

void Parser::initializer_list(Variable& variable, const Declared& declared, u64& at, u32 depth) {
  if (depth > 8) fail("initial value is nested too deeply");
  expect('{');
  if (accept('}')) return;
  do {
    if (peek().is('{'))
      initializer_list(variable, declared, at, depth + 1);
    else
      initializer_value(variable, declared, at);
  } while (accept(','));
  expect('}');
}

void Parser::store_initial(Variable& variable, const Declared& declared, u64& at, u64 bits) {
  const u32 bytes = type_bytes(declared.type);
  if (declared.unsized && at + bytes > variable.initial.size()) variable.initial.resize(at + bytes);
  if (at + bytes > variable.initial.size())
    fail("more initial values than '" + variable.name + "' has room for");
  std::memcpy(variable.initial.data() + at, &bits, std::min(bytes, 8u));
  at += bytes;
}

// A number, an address (`name`, `generic(name)`, `name+8`) or one byte of an address (`0xff00(name)`).
void Parser::initializer_value(Variable& variable, const Declared& declared, u64& at) {
  const bool negative = accept('-');
  const Token token = next();
  const u32 bytes = type_bytes(declared.type);
  if (token.kind == TokenKind::real32 || token.kind == TokenKind::real64) {
    double value = token.kind == TokenKind::real32
                       ? static_cast<double>(std::bit_cast<float>(static_cast<u32>(token.value)))
                       : std::bit_cast<double>(token.value);
    if (negative) value = -value;
    if (bytes == 8) return store_initial(variable, declared, at, std::bit_cast<u64>(value));
    if (bytes == 4)
      return store_initial(variable, declared, at, std::bit_cast<u32>(static_cast<float>(value)));
    if (declared.type == Type::f16) return store_initial(variable, declared, at, half_from_double(value));
    fail("floating point initial value for a variable of another type");
  }
  if (token.kind == TokenKind::integer && !peek().is('('))
    return store_initial(variable, declared, at, negative ? 0 - token.value : token.value);
  Relocation relocation{at, bytes, 0, {}, 0, token.line};
  if (token.kind == TokenKind::integer) {
    while (relocation.shift < 56 && (token.value >> relocation.shift & 0xff) == 0) relocation.shift += 8;
    if (token.value != 0xffull << relocation.shift || bytes != 1) fail("malformed address mask");
  }
  if (token.kind == TokenKind::integer || (token.is_word("generic") && peek().is('('))) {
    expect('(');
    relocation.name = expect_word();
    expect(')');
  } else if (token.kind == TokenKind::word) {
    relocation.name = token.text;
  } else {
    fail("malformed initial value '" + std::string(token.text) + "'");
  }
  if (peek().is('+') || peek().is('-')) {
    const bool minus = next().is('-');
    const i64 addend = static_cast<i64>(expect_integer());
    relocation.addend = minus ? -addend : addend;
  }
  if (bytes != 8 && bytes != 1) fail("an address needs 64 bits");
  variable.relocations.push_back(relocation);
  store_initial(variable, declared, at, 0);
}

}  // namespace gpupool::softgpu::engine
