#include "hostd/softgpu/engine/lexer.hpp"

#include <bit>
#include <cerrno>
#include <cstdlib>

namespace gpupool::softgpu::engine {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_hex(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' || c == '%';
}
bool is_name(char c) {
  return is_name_start(c) || is_digit(c);
}

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::vector<Token> run() {
    std::vector<Token> tokens;
    tokens.reserve(text_.size() / 4 + 1);
    while (skip_space()) tokens.push_back(next());
    tokens.push_back(Token{TokenKind::end, line_, "end of file", 0});
    return tokens;
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  // Moves to the next token; false at the end. A NUL ends the text: images are C strings.
  bool skip_space() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '\n') {
        ++line_;
        ++at_;
      } else if (c == ' ' || c == '\t' || c == '\r') {
        ++at_;
      } else if (c == '/' && peek(1) == '/') {
        while (at_ < text_.size() && text_[at_] != '\n') ++at_;
      } else if (c == '/' && peek(1) == '*') {
        skip_comment();
      } else {
        return c != '\0';
      }
    }
    return false;
  }

  void skip_comment() {
    const u32 start = line_;
    for (at_ += 2; at_ < text_.size(); ++at_) {
      if (text_[at_] == '\n') ++line_;
      if (text_[at_] == '*' && peek(1) == '/') {
        at_ += 2;
        return;
      }
    }
    throw LoadError(start, "comment without end");
  }

  Token next() {
    const char c = peek();
    if (is_name_start(c)) return name();
    if (is_digit(c)) return number();
    if (c == '.' && (is_name(peek(1)))) return dot();
    if (c == '"') return quoted();
    const size_t start = at_++;
    return {TokenKind::punctuation, line_, text_.substr(start, 1), 0};
  }

  Token name() {
    const size_t start = at_;
    while (is_name(peek())) ++at_;
    return {TokenKind::word, line_, text_.substr(start, at_ - start), 0};
  }

  Token dot() {
    const size_t start = ++at_;
    while (is_name(peek()) || (peek() == ':' && peek(1) == ':' && is_name(peek(2))))
      at_ += peek() == ':' ? 2 : 1;
    return {TokenKind::dot, line_, text_.substr(start, at_ - start), 0};
  }

  Token quoted() {
    const size_t start = ++at_;
    while (peek() != '"') {
      if (at_ >= text_.size() || peek() == '\n') throw LoadError(line_, "string without end");
      at_ += peek() == '\\' ? 2 : 1;
    }
    return {TokenKind::string, line_, text_.substr(start, at_++ - start), 0};
  }

  Token number() {
    const char second = peek(1);
    if (peek() == '0' && (second == 'f' || second == 'F')) return float_bits(TokenKind::real32, 8);
    if (peek() == '0' && (second == 'd' || second == 'D')) return float_bits(TokenKind::real64, 16);
    size_t end = at_;
    while (is_digit(text_[end]) && end + 1 < text_.size()) ++end;
    const bool hex_or_binary = second == 'x' || second == 'X' || second == 'b' || second == 'B';
    if (!hex_or_binary && (text_[end] == '.' || text_[end] == 'e' || text_[end] == 'E')) return decimal();
    return integer();
  }

  Token float_bits(TokenKind kind, size_t digits) {
    const size_t start = at_;
    at_ += 2;
    u64 value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      if (!is_hex(peek())) throw LoadError(line_, "malformed floating point constant");
      value = value << 4 | hex_value(peek());
    }
    return {kind, line_, text_.substr(start, at_ - start), value};
  }

  static u64 hex_value(char c) { return static_cast<u64>(is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10); }

  Token decimal() {
    const size_t start = at_;
    while (is_digit(peek()) || peek() == '.') ++at_;
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      while (is_digit(peek())) ++at_;
    }
    const std::string copy(text_.substr(start, at_ - start));
    return {TokenKind::real64, line_, text_.substr(start, at_ - start),
            std::bit_cast<u64>(std::strtod(copy.c_str(), nullptr))};
  }

  Token integer() {
    const size_t start = at_;
    u32 base = 10;
    if (peek() == '0' && (peek(1) == 'x' || peek(1) == 'X')) {
      base = 16;
      at_ += 2;
    } else if (peek() == '0' && (peek(1) == 'b' || peek(1) == 'B')) {
      base = 2;
      at_ += 2;
    } else if (peek() == '0') {
      base = 8;
    }
    const size_t digits = at_;
    u64 value = 0;
    for (; is_hex(peek()); ++at_) {
      const u64 digit = hex_value(peek());
      if (digit >= base) break;
      if (value > (~0ull - digit) / base) throw LoadError(line_, "integer constant beyond 64 bits");
      value = value * base + digit;
    }
    if (at_ == digits) throw LoadError(line_, "malformed integer constant");
    if (peek() == 'U') ++at_;
    if (is_name(peek()))
      throw LoadError(line_, "malformed number '" + std::string(text_.substr(start, at_ + 1 - start)) + "'");
    return {TokenKind::integer, line_, text_.substr(start, at_ - start), value};
  }

  std::string_view text_;
  size_t at_ = 0;
  u32 line_ = 1;
};

}  // namespace

std::vector<Token> lex(std::string_view text) {
  return Lexer(text).run();
}

}  // namespace gpupool::softgpu::engine
