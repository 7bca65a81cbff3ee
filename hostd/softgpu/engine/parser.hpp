// The PTX parser: a module's directives here and in parser.cpp, function bodies in parser_body.cpp, variables
// and their initial values in parser_variable.cpp. Instructions go to lower() as soon as they are read.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "hostd/softgpu/engine/lexer.hpp"
#include "hostd/softgpu/engine/statement.hpp"

namespace gpupool::softgpu::engine {

// A name in a scope.
struct Symbol {
  enum class Kind : u8 { reg, variable, function } kind = Kind::reg;
  Register reg;
  u32 index = 0;
};

// Names between one pair of braces. Registers declared as %r<n> are made when first used.
struct Scope {
  struct Range {
    u64 count = 0;
    u32 bytes = 0;
  };
  std::unordered_map<std::string_view, Symbol> names;
  std::unordered_map<std::string_view, Range> ranges;
  u32 number = 0;  // of the scope, for labels
};

struct Label {
  u32 scope = 0;
  std::string_view name;
  u32 pc = 0;
};

// A branch to a label that may come later.
struct LabelUse {
  u32 scope = 0;
  std::string_view name;
  u32 inst = ~0u;   // patch this instruction's imm...
  u32 table = ~0u;  // ... or this entry of the function's tables
  u32 line = 0;
};

struct BranchTable {
  u32 first = 0;
  u32 count = 0;
};

class Parser {
 public:
  Parser(std::string_view text, ProgramImpl& program) : tokens_(lex(text)), program_(program) {}
  void module();

  // For the lowering of one instruction.
  ProgramImpl& program() { return program_; }
  Function& function() { return program_.functions[function_]; }
  u32 function_index() const { return function_; }
  Place new_register(u32 bytes);
  Place initial_register(Initial what, u32 bytes, u32 variable = 0);
  Place carry_register();
  void use_label(std::string_view name, u32 inst, u32 line);
  const BranchTable* branch_table(std::string_view name) const;
  bool has_prototype(std::string_view name) const { return prototypes_.contains(name); }

 private:
  // Tokens.
  const Token& peek(size_t ahead = 0) const {
    return tokens_[at_ + ahead < tokens_.size() ? at_ + ahead : tokens_.size() - 1];
  }
  const Token& next() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_.back(); }
  bool accept(char c);
  bool accept_dot(std::string_view name);
  void expect(char c);
  std::string_view expect_word();
  u64 expect_integer();
  [[noreturn]] void fail(const std::string& what) const;

  // Directives (parser.cpp).
  void directive();
  void header_directive(std::string_view name);
  void skip_section();
  void skip_line_of(u32 line);
  void function_declaration(bool entry, bool external);
  std::vector<u32> parameter_list(bool entry);
  void performance_directives(Function& function);
  u32 declare_function(std::string_view name, bool entry);
  void finish_kernel_info(Function& function);

  // Variables (parser_variable.cpp).
  struct Declared {
    std::string_view name;
    Type type = Type::none;
    u32 vector = 1;
    u64 alignment = 1;
    u64 count = 1;  // elements over all dimensions
    bool array = false;
    bool unsized = false;
  };
  void variable_declaration(Space space, bool external);
  Declared declarator_type();
  void dimensions(Declared& declared);
  u32 add_variable(const Declared& declared, Space space, bool external);
  void initializer(Variable& variable, const Declared& declared);
  void initializer_list(Variable& variable, const Declared& declared, u64& at, u32 depth);
  void initializer_value(Variable& variable, const Declared& declared, u64& at);
  void store_initial(Variable& variable, const Declared& declared, u64& at, u64 bits);

  // Bodies (parser_body.cpp).
  void body();
  void block();
  void statement();
  void body_directive();
  void register_declaration();
  void instruction();
  void call_prototype(std::string_view label);
  void branch_targets(std::string_view label);
  Operand operand();
  Operand operand_word();
  Operand address();
  Operand number(bool negative);
  void operand_list(Statement& statement);
  const Symbol* find(std::string_view name);
  bool find_in_ranges(std::string_view name, Symbol& symbol);
  Operand special_register(std::string_view word, u32 line);
  void resolve_labels();

  std::vector<Token> tokens_;
  size_t at_ = 0;
  ProgramImpl& program_;
  u32 function_ = 0;
  std::vector<Scope> scopes_{1};  // [0]: the module
  u32 scope_count_ = 1;
  std::vector<u32> scope_parents_{0};
  std::vector<Label> labels_;
  std::vector<LabelUse> label_uses_;
  std::unordered_map<std::string_view, BranchTable> branch_tables_;
  std::unordered_map<std::string_view, u32> prototypes_;
  std::unordered_map<u64, Place> initial_registers_;
  Place carry_ = kNoPlace;
  u32 predicate_row_ = 0;  // where the next predicate goes
  u32 predicates_left_ = 0;
};

// Throws LoadError when no instruction has this opcode. Asked before operands are read, whose form may be
// unknown too.
void require_opcode(const Statement& statement);

// Checks one instruction and appends its code to the parser's current function. Throws LoadError.
void lower(Parser& parser, const Statement& statement);

}  // namespace gpupool::softgpu::engine
