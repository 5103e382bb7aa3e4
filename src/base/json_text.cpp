#include "base/json_text.h"

#include <algorithm>

namespace reft {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the valid UTF-8 sequence at the start of `text`; 0 when it is invalid, and then `*skip`
// is how many bytes one U+FFFD stands for.
size_t utf8_sequence(std::string_view text, size_t* skip) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  *skip = 1;
  const unsigned char first = byte(0);
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // of the second byte
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size() || byte(i) < low || byte(i) > high) {
      *skip = i;
      return 0;
    }
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

// Of a valid sequence of more than one byte.
char32_t codepoint(std::string_view sequence) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(sequence[i]); };
  char32_t c = byte(0) & (0x7Fu >> sequence.size());
  for (size_t i = 1; i < sequence.size(); ++i) c = c << 6 | (byte(i) & 0x3F);
  return c;
}

// \uXXXX, or two of them.
void append_escape(std::string& out, char32_t c) {
  if (c >= 0x10000) {
    append_escape(out, 0xD800 + ((c - 0x10000) >> 10));
    append_escape(out, 0xDC00 + ((c - 0x10000) & 0x3FF));
    return;
  }
  static constexpr char kHex[] = "0123456789abcdef";
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out += kHex[c >> shift & 15];
}

}  // namespace

void append_json_string(std::string& out, std::string_view text, bool ensure_ascii) {
  out += '"';
  size_t plain = 0;  // start of the run that needs no escape
  size_t i = 0;
  const auto flush = [&] { out.append(text.data() + plain, i - plain); };
  while (i < text.size()) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    if (c >= 0x80) {
      size_t skip = 0;
      const size_t length = utf8_sequence(text.substr(i), &skip);
      if (length > 0 && !ensure_ascii) {
        i += length;
        continue;
      }
      flush();
      if (!ensure_ascii) {
        out += kReplacement;
      } else {
        append_escape(out, length > 0 ? codepoint(text.substr(i, length)) : char32_t{0xFFFD});
      }
      i += length > 0 ? length : skip;
      plain = i;
      continue;
    }
    flush();
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        append_escape(out, c);
    }
    plain = ++i;
  }
  flush();
  out += '"';
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    size_t skip = 0;
    if (const size_t length = utf8_sequence(bytes.substr(i), &skip); length > 0) {
      out.append(bytes.substr(i, length));
      i += length;
    } else {
      out += kReplacement;
      i += skip;
    }
  }
  return out;
}

int64_t count_code_points(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace reft
