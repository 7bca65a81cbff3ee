#include "hostd/worker/ptx_variables.hpp"

#include <array>
#include <charconv>
#include <utility>

namespace gpupool::worker {
namespace {

constexpr u64 kUnknown = ~u64{0};

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '$' ||
         c == '%' || c == '.';
}

u64 multiply(u64 a, u64 b) {
  u64 product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kUnknown : product;
}

u64 add(u64 a, u64 b) {
  u64 sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? kUnknown : sum;
}

// Words are names, directives and numbers; every other character is a word of its own. Comments are skipped,
// and strings, of which none says how large something is (PTX ISA, "Lexical Elements").
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) { advance(); }

  // The next word; empty at the end.
  [[nodiscard]] std::string_view peek() const { return word_; }
  std::string_view take() {
    const std::string_view word = word_;
    advance();
    return word;
  }
  bool accept(std::string_view word) {
    if (word_ != word) return false;
    advance();
    return true;
  }

 private:
  void skip_to(std::string_view end) {
    const size_t found = text_.find(end, at_);
    at_ = found == std::string_view::npos ? text_.size() : found + end.size();
  }

  void advance() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (text_.substr(at_, 2) == "//") {
        skip_to("\n");
      } else if (text_.substr(at_, 2) == "/*") {
        at_ += 2;
        skip_to("*/");
      } else if (c == '"') {
        ++at_;
        skip_to("\"");
      } else if (c == ' ' || (c >= '\t' && c <= '\r') || c == 0) {
        ++at_;
      } else {
        break;
      }
    }
    const size_t begin = at_;
    while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    if (at_ == begin && at_ < text_.size()) ++at_;
    word_ = text_.substr(begin, at_ - begin);
  }

  std::string_view text_;
  std::string_view word_;
  size_t at_ = 0;
};

u64 bytes_of_type(std::string_view type) {
  constexpr std::array<std::pair<std::string_view, u64>, 12> kNamed = {{{".f16x2", 4},
                                                                        {".bf16", 2},
                                                                        {".bf16x2", 4},
                                                                        {".tf32", 4},
                                                                        {".texref", 8},
                                                                        {".samplerref", 8},
                                                                        {".surfref", 8},
                                                                        {".pred", 1},
                                                                        {".e4m3", 1},
                                                                        {".e5m2", 1},
                                                                        {".e4m3x2", 2},
                                                                        {".e5m2x2", 2}}};
  for (const auto& [name, bytes] : kNamed)
    if (type == name) return bytes;
  if (type.size() < 3 || type[0] != '.' || std::string_view("busf").find(type[1]) == std::string_view::npos)
    return 0;
  u64 bits = 0;
  const auto [end, error] = std::from_chars(type.data() + 2, type.data() + type.size(), bits);
  return error == std::errc() && end == type.data() + type.size() && bits <= 128 ? bits / 8 : 0;
}

bool read_number(std::string_view word, u64& value) {
  int base = 10;
  if (!word.empty() && (word.back() == 'U' || word.back() == 'u')) word.remove_suffix(1);
  if (word.size() > 2 && word[0] == '0' && (word[1] == 'x' || word[1] == 'X')) {
    base = 16;
    word.remove_prefix(2);
  } else if (word.size() > 2 && word[0] == '0' && (word[1] == 'b' || word[1] == 'B')) {
    base = 2;
    word.remove_prefix(2);
  } else if (word.size() > 1 && word[0] == '0') {
    base = 8;
  }
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value, base);
  return error == std::errc() && end == word.data() + word.size();
}

// A length between brackets: numbers, + and *, from left to right by rank; anything else is kUnknown.
u64 read_length(Words& words) {
  u64 sum = 0;
  u64 product = 1;
  while (true) {
    u64 number = 0;
    if (!read_number(words.take(), number)) return kUnknown;
    product = multiply(product, number);
    if (words.accept("*")) continue;
    sum = add(sum, product);
    product = 1;
    if (words.accept("+")) continue;
    return words.accept("]") ? sum : kUnknown;
  }
}

// How many values stand after "=", up to the "," or ";" behind them.
u64 count_values(Words& words) {
  u64 depth = 0;
  u64 values = 1;
  while (!words.peek().empty() && words.peek() != ";" && (words.peek() != "," || depth != 0)) {
    const std::string_view word = words.take();
    if (word == "{" || word == "(") ++depth;
    if ((word == "}" || word == ")") && depth != 0) --depth;
    if (word == ",") ++values;
  }
  return values;
}

// What comes after .global or .const: alignment, vector, type, then names with their sizes.
u64 declaration_bytes(Words& words) {
  u64 each = 1;
  while (true) {
    const std::string_view word = words.peek();
    if (word == ".align") {
      words.take();
      words.take();
    } else if (word == ".attribute") {
      words.take();
      while (!words.peek().empty() && words.take() != ")") {
      }
    } else if (word == ".v2" || word == ".v4" || word == ".v8") {
      each = static_cast<u64>(words.take()[2] - '0');
    } else {
      break;
    }
  }
  const u64 type = bytes_of_type(words.peek());
  if (type == 0) return words.peek().starts_with('.') ? kUnknown : 0;
  words.take();
  u64 sum = 0;
  do {
    words.take();  // the name
    u64 length = each;
    bool open = false;
    while (words.accept("[")) {
      if (words.accept("]"))
        open = true;
      else
        length = multiply(length, read_length(words));
    }
    // name<N> declares name0 to nameN-1, for registers only.
    if (words.accept("=")) {
      const u64 values = count_values(words);
      if (open) length = multiply(length, values);
    } else if (open) {
      length = 0;  // another module's
    }
    sum = add(sum, multiply(type, length));
  } while (words.accept(","));
  return sum;
}

}  // namespace

u64 ptx_variable_bytes(std::string_view text) {
  Words words(text);
  u64 sum = 0;
  std::string_view before;
  bool is_extern = false;
  while (!words.peek().empty()) {
    const std::string_view word = words.take();
    if (word == ".extern") is_extern = true;
    if (word == ";" || word == "}" || word == "{") is_extern = false;
    // Of a parameter it says where the pointer points to.
    if ((word == ".global" || word == ".const") && before != ".ptr") {
      const u64 bytes = declaration_bytes(words);
      if (!is_extern) sum = add(sum, bytes);
    }
    before = word;
  }
  return sum;
}

}  // namespace gpupool::worker
