// PTX text to tokens. Comments and white space vanish; every token knows its line.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::softgpu::engine {

// Why a module cannot be loaded. The text names line and construct.
class LoadError : public std::runtime_error {
 public:
  LoadError(u32 line, const std::string& what)
      : std::runtime_error("line " + std::to_string(line) + ": " + what) {}
};

enum class TokenKind : u8 {
  end,
  word,     // name, label, opcode, register
  dot,      // ".sync" or ".L1::no_allocate"; text without the first dot
  integer,  // `value` holds the 64 bits
  real32,   // 0f...: `value` holds the 32 bits
  real64,   // 0d... or a decimal number: `value` holds the 64 bits
  string,
  punctuation,  // one character, in `text`
};

struct Token {
  TokenKind kind = TokenKind::end;
  u32 line = 0;
  std::string_view text;
  u64 value = 0;

  [[nodiscard]] bool is(char c) const { return kind == TokenKind::punctuation && text[0] == c; }
  [[nodiscard]] bool is_dot(std::string_view name) const { return kind == TokenKind::dot && text == name; }
  [[nodiscard]] bool is_word(std::string_view name) const { return kind == TokenKind::word && text == name; }
};

// The tokens refer to `text`, which must live as long as they do. The last token is `end`.
std::vector<Token> lex(std::string_view text);

}  // namespace gpupool::softgpu::engine
