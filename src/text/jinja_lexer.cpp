#include "text/jinja_lexer.h"

#include <algorithm>

#include "base/check.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

bool is_digit_in_base(char c, int base) {
  if (c >= '0' && c <= '9') return c - '0' < base;
  char lower = static_cast<char>(c | 0x20);
  return base == 16 && lower >= 'a' && lower <= 'f';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_char(char c) { return is_name_start(c) || (c >= '0' && c <= '9'); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) lex_text();
    add(TokenKind::kEnd, "", source_.size());
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(size_t position, std::string_view message) const {
    fail("chat template: {}: {}", describe_position(source_, position), message);
  }
  void add(TokenKind kind, std::string text, size_t position) {
    tokens_.push_back({kind, std::move(text), position});
  }
  bool at(std::string_view word) const { return source_.substr(pos_, word.size()) == word; }
  void skip_space() {
    while (pos_ < source_.size()) {
      size_t next = pos_;
      if (!is_space(next_codepoint(source_, next))) return;
      pos_ = next;
    }
  }

  // Text before a tag, with what `sign` and lstrip_blocks take away.
  void add_text(std::string_view text, size_t position, char sign, bool is_variable) {
    if (sign == '-') {
      text = strip(text, false, true);
    } else if (sign != '+' && !is_variable) {
      size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
      if ((line > 0 || line_starting_) && strip(text.substr(line), true, true).empty()) {
        text = text.substr(0, line);
      }
    }
    if (!text.empty()) add(TokenKind::kText, std::string(text), position);
  }

  void lex_text() {
    size_t begin = pos_;
    size_t tag = begin;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= source_.size()) {
        add(TokenKind::kText, std::string(source_.substr(begin)), begin);
        pos_ = source_.size();
        return;
      }
      char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
    }
    char type = source_[tag + 1];
    pos_ = tag + 2;
    char sign = 0;
    if (pos_ < source_.size() && (source_[pos_] == '-' || source_[pos_] == '+'))
      sign = source_[pos_++];
    add_text(source_.substr(begin, tag - begin), begin, sign, type == '{');
    line_starting_ = false;
    if (type == '#') {
      lex_comment(tag);
    } else if (type == '%' && lex_raw(tag)) {
      return;
    } else {
      lex_code(type == '%', tag);
    }
  }

  // After "#}" or "%}": `sign` is the character before it.
  void end_tag(char sign) {
    size_t begin = pos_;
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && pos_ < source_.size() && source_[pos_] == '\n') {
      ++pos_;
    }
    line_starting_ = pos_ > begin && source_[pos_ - 1] == '\n';
  }

  void lex_comment(size_t tag) {
    size_t end = source_.find("#}", pos_);
    if (end == std::string_view::npos) error(tag, "missing end of comment tag");
    char sign = end > pos_ ? source_[end - 1] : ' ';
    pos_ = end + 2;
    end_tag(sign);
  }

  // {% raw %} … {% endraw %}; false (and nothing consumed) when this is another tag.
  bool lex_raw(size_t tag) {
    size_t start = pos_;
    skip_space();
    bool matches = at("raw");
    if (matches) {
      pos_ += 3;
      skip_space();
      matches = at("%}") || at("-%}");
    }
    if (!matches) {
      pos_ = start;
      return false;
    }
    bool strips = at("-");
    pos_ += strips ? 3 : 2;
    size_t after = pos_;
    if (strips) skip_space();
    line_starting_ = pos_ > after && source_[pos_ - 1] == '\n';
    size_t begin = pos_;
    for (size_t end = begin;; ++end) {
      end = source_.find("{%", end);
      if (end == std::string_view::npos) error(tag, "missing end of raw directive");
      pos_ = end + 2;
      char sign = 0;
      if (at("-") || at("+")) sign = source_[pos_++];
      skip_space();
      if (!at("endraw")) continue;
      pos_ += 6;
      skip_space();
      char end_sign = at("-") || at("+") ? source_[pos_++] : ' ';
      if (!at("%}")) continue;
      pos_ += 2;
      add_text(source_.substr(begin, end - begin), begin, sign, false);
      end_tag(end_sign);
      return true;
    }
  }

  void lex_code(bool block, size_t tag) {
    add(block ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "", tag);
    std::string_view close = block ? "%}" : "}}";
    std::string open_braces;
    for (;;) {
      skip_space();
      if (pos_ >= source_.size())
        error(tag,
              block ? "this statement tag is not closed" : "this expression tag is not closed");
      if (open_braces.empty()) {
        char c = source_[pos_];
        bool sign = c == '-' || (c == '+' && block);
        if (source_.substr(pos_ + (sign ? 1 : 0), 2) == close) {
          add(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "", pos_);
          pos_ += sign ? 3 : 2;
          if (block) {
            end_tag(sign ? c : ' ');
          } else {
            end_tag(sign ? c : '+');
          }
          return;
        }
      }
      lex_token(open_braces);
    }
  }

  void lex_token(std::string& open_braces) {
    size_t begin = pos_;
    char c = source_[pos_];
    if (is_name_start(c)) {
      while (pos_ < source_.size() && is_name_char(source_[pos_])) ++pos_;
      add(TokenKind::kName, std::string(source_.substr(begin, pos_ - begin)), begin);
    } else if (c >= '0' && c <= '9') {
      lex_number();
    } else if (c == '\'' || c == '"') {
      lex_string(c);
    } else {
      lex_operator(open_braces);
    }
  }

  // Digits with single underscores between them.
  void take_digits(std::string& out, int base) {
    while (pos_ < source_.size()) {
      char c = source_[pos_];
      if (is_digit_in_base(c, base)) {
        out += c;
      } else if (c != '_' || pos_ + 1 >= source_.size() ||
                 !is_digit_in_base(source_[pos_ + 1], base)) {
        return;
      }
      ++pos_;
    }
  }

  void lex_number() {
    size_t begin = pos_;
    std::string text;
    if (source_[pos_] == '0' && pos_ + 1 < source_.size()) {
      char kind = static_cast<char>(source_[pos_ + 1] | 0x20);
      int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
      if (base != 0) {
        pos_ += 2;
        take_digits(text, base);
        if (text.empty()) error(begin, "invalid number");
        add(TokenKind::kInteger, std::string("0") + kind + text, begin);
        return;
      }
    }
    take_digits(text, 10);
    bool is_float = false;
    bool after_dot = begin > 0 && source_[begin - 1] == '.';
    if (!after_dot && pos_ + 1 < source_.size() && source_[pos_] == '.' &&
        is_digit_in_base(source_[pos_ + 1], 10)) {
      is_float = true;
      text += '.';
      ++pos_;
      take_digits(text, 10);
    }
    if (!after_dot && pos_ < source_.size() && (source_[pos_] | 0x20) == 'e') {
      size_t digit = pos_ + 1;
      if (digit < source_.size() && (source_[digit] == '+' || source_[digit] == '-')) ++digit;
      if (digit < source_.size() && is_digit_in_base(source_[digit], 10)) {
        is_float = true;
        text += source_.substr(pos_, digit - pos_);
        pos_ = digit;
        take_digits(text, 10);
      }
    }
    add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text), begin);
  }

  char32_t take_hex(size_t digits) {
    char32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++pos_) {
      if (pos_ >= source_.size() || !is_digit_in_base(source_[pos_], 16))
        error(pos_, "truncated escape in a string");
      char c = source_[pos_];
      value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (value > 0x10FFFF) error(pos_, "escape beyond Unicode in a string");
    return value;
  }

  void lex_string(char quote) {
    size_t begin = pos_++;
    std::string text;
    for (;;) {
      if (pos_ >= source_.size()) error(begin, "a string is not closed");
      char c = source_[pos_++];
      if (c == quote) break;
      if (c != '\\') {
        text += c;
        continue;
      }
      if (pos_ >= source_.size()) error(begin, "a string is not closed");
      lex_escape(text);
    }
    add(TokenKind::kString, std::move(text), begin);
  }

  void lex_escape(std::string& text) {
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    char c = source_[pos_++];
    if (size_t i = kFrom.find(c); i != std::string_view::npos) {
      text += kTo[i];
    } else if (c == '\n') {
      return;
    } else if (c == 'x') {
      append_utf8(text, take_hex(2));
    } else if (c == 'u') {
      append_utf8(text, take_hex(4));
    } else if (c == 'U') {
      append_utf8(text, take_hex(8));
    } else if (c >= '0' && c <= '7') {
      char32_t value = static_cast<char32_t>(c - '0');
      for (int i = 0;
           i < 2 && pos_ < source_.size() && source_[pos_] >= '0' && source_[pos_] <= '7'; ++i) {
        value = value * 8 + static_cast<char32_t>(source_[pos_++] - '0');
      }
      append_utf8(text, value);
    } else {
      text += '\\';
      text += c;
    }
  }

  void lex_operator(std::string& open_braces) {
    static constexpr std::string_view kDouble[] = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kSingle = "+-/*%~[](){}><=.:|,;";
    size_t begin = pos_;
    for (std::string_view op : kDouble) {
      if (at(op)) {
        pos_ += 2;
        add(TokenKind::kOperator, std::string(op), begin);
        return;
      }
    }
    char c = source_[pos_];
    if (kSingle.find(c) == std::string_view::npos)
      error(pos_, fmt::format("unexpected character '{}'", c));
    if (c == '(' || c == '[' || c == '{') {
      open_braces += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (open_braces.empty()) error(pos_, fmt::format("unexpected '{}'", c));
      if (open_braces.back() != c)
        error(pos_, fmt::format("unexpected '{}', expected '{}'", c, open_braces.back()));
      open_braces.pop_back();
    }
    ++pos_;
    add(TokenKind::kOperator, std::string(1, c), begin);
  }

  std::string_view source_;
  size_t pos_ = 0;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string normalize_source(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

std::string describe_position(std::string_view source, size_t position) {
  std::string_view before = source.substr(0, position);
  auto line = 1 + std::count(before.begin(), before.end(), '\n');
  size_t line_begin = before.rfind('\n') + 1;
  return fmt::format("line {}, column {}", line, codepoint_count(before.substr(line_begin)) + 1);
}

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace reft::jinja
