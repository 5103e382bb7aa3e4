#include "text/json_scanner.h"

#include <charconv>

#include "base/check.h"
#include "text/unicode.h"

namespace reft {

void JsonScanner::bad(const char* problem) const {
  fail("{}: invalid JSON at byte {}: {}", what_, i_, problem);
}

void JsonScanner::expect(char c) {
  space();
  if (i_ >= text_.size() || text_[i_] != c) bad("unexpected character");
  ++i_;
}

char JsonScanner::peek() {
  space();
  if (i_ >= text_.size()) bad("unexpected end");
  return text_[i_];
}

void JsonScanner::end() {
  space();
  if (i_ != text_.size()) bad("text after the value");
}

void JsonScanner::enter(char open) {
  expect(open);
  first_ = true;
}

bool JsonScanner::next(char close) {
  const char c = peek();
  if (c == close) {
    ++i_;
    first_ = false;
    return false;
  }
  if (!first_) {
    if (c != ',') bad("expected a comma");
    ++i_;
  }
  first_ = false;
  return true;
}

bool JsonScanner::next_item() { return next(']'); }

bool JsonScanner::next_key(std::string_view& key) {
  if (!next('}')) return false;
  key = string();
  expect(':');
  return true;
}

std::string_view JsonScanner::string() {
  expect('"');
  const size_t begin = i_;
  while (i_ < text_.size()) {
    const char c = text_[i_];
    if (c == '"') return text_.substr(begin, i_++ - begin);
    if (c == '\\') return escaped_string(begin);
    if (static_cast<unsigned char>(c) < 0x20) bad("control character in a string");
    ++i_;
  }
  bad("string without end");
}

uint32_t JsonScanner::hex4() {
  uint32_t value = 0;
  if (i_ + 4 > text_.size()) bad("bad \\u escape");
  const auto [p, e] = std::from_chars(text_.data() + i_, text_.data() + i_ + 4, value, 16);
  if (e != std::errc() || p != text_.data() + i_ + 4) bad("bad \\u escape");
  i_ += 4;
  return value;
}

std::string_view JsonScanner::escaped_string(size_t begin) {
  std::string& out = buffers_[buffer_ ^= 1];
  out.assign(text_.substr(begin, i_ - begin));
  while (i_ < text_.size()) {
    const char c = text_[i_++];
    if (c == '"') return out;
    if (static_cast<unsigned char>(c) < 0x20) bad("control character in a string");
    if (c != '\\') {
      out += c;
      continue;
    }
    if (i_ >= text_.size()) break;
    switch (text_[i_++]) {
      case 'n':
        out += '\n';
        break;
      case 't':
        out += '\t';
        break;
      case 'r':
        out += '\r';
        break;
      case 'b':
        out += '\b';
        break;
      case 'f':
        out += '\f';
        break;
      case '"':
        out += '"';
        break;
      case '\\':
        out += '\\';
        break;
      case '/':
        out += '/';
        break;
      case 'u': {
        uint32_t code = hex4();
        if (code >= 0xD800 && code < 0xDC00 && text_.substr(i_, 2) == "\\u") {
          i_ += 2;
          const uint32_t low = hex4();
          if (low < 0xDC00 || low > 0xDFFF) bad("lone surrogate");
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        if (code >= 0xD800 && code < 0xE000) bad("lone surrogate");
        unicode::append(out, code);
        break;
      }
      default:
        bad("unknown escape");
    }
  }
  bad("string without end");
}

std::string_view JsonScanner::value() {
  const char first = peek();
  const size_t begin = i_;
  if (first == '"') {
    string();
    return text_.substr(begin, i_ - begin);
  }
  if (first == '{' || first == '[') {
    size_t depth = 0;
    while (i_ < text_.size()) {
      const char c = text_[i_++];
      if (c == '"') {
        --i_;
        string();
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        if (--depth == 0) return text_.substr(begin, i_ - begin);
      }
    }
    bad("unexpected end");
  }
  while (i_ < text_.size() && text_[i_] != ',' && text_[i_] != '}' && text_[i_] != ']' &&
         text_[i_] > ' ')
    ++i_;
  if (i_ == begin) bad("expected a value");
  return text_.substr(begin, i_ - begin);
}

int64_t JsonScanner::integer() {
  space();
  int64_t value = 0;
  const auto [p, e] = std::from_chars(text_.data() + i_, text_.data() + text_.size(), value);
  if (e != std::errc()) bad("expected an integer");
  i_ = size_t(p - text_.data());
  return value;
}

double JsonScanner::number() {
  space();
  double value = 0;
  const auto [p, e] = std::from_chars(text_.data() + i_, text_.data() + text_.size(), value);
  if (e != std::errc()) bad("expected a number");
  i_ = size_t(p - text_.data());
  return value;
}

}  // namespace reft
