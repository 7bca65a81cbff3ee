// A module's directives. What is not known here ends the load: a directive that is passed over could change
// what a program means.
#include "hostd/softgpu/engine/parser.hpp"

#include <cstdlib>
#include <utility>

namespace gpupool::softgpu::engine {

void Parser::fail(const std::string& what) const {
  throw LoadError(peek().line, what);
}

bool Parser::accept(char c) {
  if (!peek().is(c)) return false;
  next();
  return true;
}

bool Parser::accept_dot(std::string_view name) {
  if (!peek().is_dot(name)) return false;
  next();
  return true;
}

void Parser::expect(char c) {
  if (!accept(c)) fail("expected '" + std::string(1, c) + "', found '" + std::string(peek().text) + "'");
}

std::string_view Parser::expect_word() {
  if (peek().kind != TokenKind::word) fail("expected a name, found '" + std::string(peek().text) + "'");
  return next().text;
}

u64 Parser::expect_integer() {
  if (peek().kind != TokenKind::integer)
    fail("expected an integer, found '" + std::string(peek().text) + "'");
  return next().value;
}

void Parser::module() {
  while (peek().kind != TokenKind::end) directive();
  if (program_.ptx_version == 0) throw LoadError(1, "no .version directive: this is no PTX module");
}

void Parser::skip_line_of(u32 line) {
  while (peek().kind != TokenKind::end && peek().line == line) next();
}

// Debug sections: `.section .debug_info { ... }`.
void Parser::skip_section() {
  while (peek().kind != TokenKind::end && !peek().is('{')) next();
  expect('{');
  while (peek().kind != TokenKind::end && !peek().is('}')) next();
  expect('}');
}

void Parser::header_directive(std::string_view name) {
  if (name == "version") {
    if (peek().kind != TokenKind::real64 && peek().kind != TokenKind::integer) fail("malformed .version");
    const std::string_view text = next().text;
    for (const char c : text)
      if (c >= '0' && c <= '9') program_.ptx_version = program_.ptx_version * 10 + static_cast<u32>(c - '0');
    return;
  }
  if (name == "target") {
    do {
      const std::string_view word = expect_word();
      if (word.starts_with("sm_"))
        program_.target = static_cast<u32>(std::atoi(std::string(word.substr(3)).c_str()));
      else if (word != "debug" && word != "map_f64_to_f32" && !word.starts_with("texmode_"))
        fail("unknown target '" + std::string(word) + "'");
      if (word == "map_f64_to_f32") fail("target option map_f64_to_f32 is not supported by the software GPU");
    } while (accept(','));
    return;
  }
  if (expect_integer() != 64) fail("only 64-bit addresses are supported");
}

void Parser::directive() {
  scopes_.resize(1);  // what a function declared ended with it
  const Token token = peek();
  if (accept(';')) return;
  if (token.kind != TokenKind::dot) fail("expected a directive, found '" + std::string(token.text) + "'");
  const std::string_view name = token.text;
  if (name == "version" || name == "target" || name == "address_size") {
    next();
    return header_directive(name);
  }
  if (name == "file" || name == "loc") return skip_line_of(token.line);
  if (name == "pragma") {
    while (!peek().is(';') && peek().kind != TokenKind::end) next();
    return expect(';');
  }
  if (name == "section") return skip_section();
  bool external = false;
  for (;;) {
    if (accept_dot("extern"))
      external = true;
    else if (!accept_dot("visible") && !accept_dot("weak") && !accept_dot("common"))
      break;
  }
  if (accept_dot("entry")) return function_declaration(true, external);
  if (accept_dot("func")) return function_declaration(false, external);
  if (accept_dot("global")) return variable_declaration(Space::global, external);
  if (accept_dot("const")) return variable_declaration(Space::constant, external);
  if (accept_dot("shared")) return variable_declaration(Space::shared, external);
  fail("directive ." + std::string(peek().text) + " is not supported by the software GPU");
}

u32 Parser::declare_function(std::string_view name, bool entry) {
  if (const auto found = scopes_[0].names.find(name); found != scopes_[0].names.end()) {
    if (found->second.kind != Symbol::Kind::function) fail("'" + std::string(name) + "' is no function");
    return found->second.index;
  }
  const u32 index = static_cast<u32>(program_.functions.size());
  Function& function = program_.functions.emplace_back();
  function.name = name;
  function.entry = entry;
  function.line = peek().line;
  scopes_[0].names[name] = Symbol{Symbol::Kind::function, {}, index};
  return index;
}

// `.param .b32 name` lists of functions, in parentheses. Those of a kernel lie in its parameter buffer, those
// of a device function in the local memory of the thread.
std::vector<u32> Parser::parameter_list(bool entry) {
  std::vector<u32> list;
  expect('(');
  if (accept(')')) return list;
  do {
    if (!accept_dot("param")) fail("only .param parameters are supported");
    Declared declared = declarator_type();
    declared.name = expect_word();
    dimensions(declared);
    list.push_back(add_variable(declared, entry ? Space::param : Space::local, false));
  } while (accept(','));
  expect(')');
  return list;
}

void Parser::performance_directives(Function& function) {
  for (;;) {
    const std::string_view name = peek().kind == TokenKind::dot ? peek().text : std::string_view();
    if (name == "maxntid" || name == "reqntid") {
      next();
      u64 threads = expect_integer();
      while (accept(',')) threads *= expect_integer();
      function.info.max_threads = static_cast<u32>(threads < 1024 ? threads : 1024);
    } else if (name == "minnctapersm" || name == "maxnreg" || name == "maxnctapersm") {
      next();
      expect_integer();
    } else if (name == "noreturn") {
      next();
    } else if (name == "pragma") {
      while (!peek().is(';') && peek().kind != TokenKind::end) next();
      expect(';');
    } else {
      return;
    }
  }
}

void Parser::function_declaration(bool entry, bool external) {
  scopes_.resize(1);
  Scope& scope = scopes_.emplace_back();
  scope.number = 0;
  labels_.clear();
  label_uses_.clear();
  branch_tables_.clear();
  prototypes_.clear();
  initial_registers_.clear();
  carry_ = kNoPlace;
  predicates_left_ = 0;
  scope_count_ = 1;
  scope_parents_.assign(1, 0);

  // The results stand before the name, but belong to the function's record, which is found by the name.
  const size_t start = at_;
  if (!entry && peek().is('(')) {
    while (!peek().is(')') && peek().kind != TokenKind::end) next();
    expect(')');
  }
  function_ = declare_function(expect_word(), entry);
  if (function().defined) fail("function '" + function().name + "' is defined twice");
  function().local_bytes = 0;
  if (!entry && tokens_[start].is('(')) {
    const size_t after_name = std::exchange(at_, start);
    function().results = parameter_list(false);
    at_ = after_name;
  }
  if (peek().is('(')) function().parameters = parameter_list(entry);
  performance_directives(function());
  if (accept(';')) return;
  if (external) fail("an external function has no body");
  if (!peek().is('{'))
    fail("directive '" + std::string(peek().text) + "' is not supported by the software GPU");
  body();
  function().defined = true;
  if (entry) finish_kernel_info(function());
}

void Parser::finish_kernel_info(Function& function) {
  KernelInfo& info = function.info;
  info.name = function.name;
  for (const u32 index : function.parameters) {
    const Variable& parameter = program_.variables[index];
    info.parameters.push_back({static_cast<u32>(parameter.offset), static_cast<u32>(parameter.size)});
    info.parameter_bytes = static_cast<u32>(parameter.offset + parameter.size);
  }
  info.ptx_version = program_.ptx_version;
  info.target = program_.target;
  info.registers = function.register_count < 16    ? 16
                   : function.register_count < 255 ? function.register_count
                                                   : 255;
}

}  // namespace gpupool::softgpu::engine
