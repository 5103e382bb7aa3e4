#include "text/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/check.h"
#include "text/jinja_value.h"

namespace reft::jinja {

bool is_ascii(std::string_view s) {
  return std::all_of(s.begin(), s.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

size_t codepoint_count(std::string_view s) {
  size_t n = 0;
  for (char c : s) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

size_t byte_offset(std::string_view s, size_t index) {
  size_t pos = 0;
  while (pos < s.size()) {
    if ((static_cast<unsigned char>(s[pos]) & 0xC0) != 0x80) {
      if (index == 0) return pos;
      --index;
    }
    ++pos;
  }
  return s.size();
}

char32_t next_codepoint(std::string_view s, size_t& pos) {
  utf8proc_int32_t c = 0;
  auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(s.data()) + pos,
                            static_cast<utf8proc_ssize_t>(s.size() - pos), &c);
  if (n <= 0) {
    ++pos;
    return 0xFFFD;
  }
  pos += static_cast<size_t>(n);
  return static_cast<char32_t>(c);
}

std::u32string decode_utf8(std::string_view s) {
  std::u32string out;
  out.reserve(s.size());
  for (size_t pos = 0; pos < s.size();) out.push_back(next_codepoint(s, pos));
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  utf8proc_uint8_t bytes[4];
  auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  if (n <= 0 || (c >= 0xD800 && c < 0xE000)) {
    out += "\xEF\xBF\xBD";
    return;
  }
  out.append(reinterpret_cast<char*>(bytes), static_cast<size_t>(n));
}

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
      return false;
    default:
      return true;
  }
}
bool is_alpha(char32_t c) {
  auto k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
bool is_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_numeric(char32_t c) {
  auto k = category(c);
  return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}
bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }

static void append_upper(std::string& out, char32_t c) {
  if (c == 0xDF) {
    out += "SS";
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
}
static void append_lower(std::string& out, char32_t c) {
  append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

std::string to_upper(std::string_view s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) append_upper(out, next_codepoint(s, pos));
  return out;
}
std::string to_lower(std::string_view s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) append_lower(out, next_codepoint(s, pos));
  return out;
}
std::string to_capitalized(std::string_view s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    bool first = pos == 0;
    char32_t c = next_codepoint(s, pos);
    first ? append_upper(out, c) : append_lower(out, c);
  }
  return out;
}
std::string to_title(std::string_view s) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < s.size();) {
    char32_t c = next_codepoint(s, pos);
    in_word ? append_lower(out, c) : append_upper(out, c);
    in_word = is_alpha(c);
  }
  return out;
}
std::string swap_case(std::string_view s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    char32_t c = next_codepoint(s, pos);
    is_upper(c) ? append_lower(out, c) : append_upper(out, c);
  }
  return out;
}

// Strips code points that `drop` accepts.
template <class Drop>
static std::string_view strip_if(std::string_view s, bool left, bool right, Drop drop) {
  size_t begin = 0;
  size_t end = s.size();
  while (left && begin < end) {
    size_t pos = begin;
    if (!drop(next_codepoint(s, pos))) break;
    begin = pos;
  }
  while (right && end > begin) {
    size_t pos = end - 1;
    while (pos > begin && (static_cast<unsigned char>(s[pos]) & 0xC0) == 0x80) --pos;
    size_t after = pos;
    if (!drop(next_codepoint(s, after))) break;
    end = pos;
  }
  return s.substr(begin, end - begin);
}

std::string_view strip(std::string_view s, bool left, bool right) {
  return strip_if(s, left, right, is_space);
}

std::string_view strip_chars(std::string_view s, std::string_view chars, bool left, bool right) {
  std::u32string set = decode_utf8(chars);
  return strip_if(s, left, right, [&](char32_t c) { return set.find(c) != std::u32string::npos; });
}

std::vector<std::string_view> split_whitespace(std::string_view s, int64_t max_splits) {
  std::vector<std::string_view> out;
  s = strip(s, true, false);
  while (!s.empty()) {
    if (max_splits >= 0 && static_cast<int64_t>(out.size()) == max_splits) {
      out.push_back(s);
      break;
    }
    size_t end = 0;
    while (end < s.size()) {
      size_t pos = end;
      if (is_space(next_codepoint(s, pos))) break;
      end = pos;
    }
    out.push_back(s.substr(0, end));
    s = strip(s.substr(end), true, false);
  }
  return out;
}

std::vector<std::string_view> rsplit_whitespace(std::string_view s, int64_t max_splits) {
  if (max_splits < 0) return split_whitespace(s, -1);
  std::vector<std::string_view> words = split_whitespace(s, -1);
  auto count = static_cast<int64_t>(words.size());
  if (count <= max_splits + 1) return words;
  auto head = static_cast<size_t>(count - max_splits);
  const char* end = words[head - 1].data() + words[head - 1].size();
  std::vector<std::string_view> out{s.substr(0, static_cast<size_t>(end - s.data()))};
  out.insert(out.end(), words.begin() + static_cast<std::ptrdiff_t>(head), words.end());
  return out;
}

std::vector<std::string_view> split(std::string_view s, std::string_view separator,
                                    int64_t max_splits) {
  check(!separator.empty(), "chat template: empty separator");
  std::vector<std::string_view> out;
  for (;;) {
    size_t at = max_splits >= 0 && static_cast<int64_t>(out.size()) >= max_splits
                    ? std::string_view::npos
                    : s.find(separator);
    out.push_back(s.substr(0, at));
    if (at == std::string_view::npos) return out;
    s.remove_prefix(at + separator.size());
  }
}

std::vector<std::string_view> rsplit(std::string_view s, std::string_view separator,
                                     int64_t max_splits) {
  check(!separator.empty(), "chat template: empty separator");
  std::vector<std::string_view> out;
  for (;;) {
    size_t at = max_splits >= 0 && static_cast<int64_t>(out.size()) >= max_splits
                    ? std::string_view::npos
                    : s.rfind(separator);
    if (at == std::string_view::npos) {
      out.push_back(s);
      break;
    }
    out.push_back(s.substr(at + separator.size()));
    s = s.substr(0, at);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> split_lines(std::string_view s, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t pos = 0; pos < s.size();) {
    size_t at = pos;
    char32_t c = next_codepoint(s, pos);
    bool ends =
        (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    if (c == 13 && pos < s.size() && s[pos] == '\n') ++pos;
    out.push_back(s.substr(begin, (keep_ends ? pos : at) - begin));
    begin = pos;
  }
  if (begin < s.size()) out.push_back(s.substr(begin));
  return out;
}

std::string replace(std::string_view s, std::string_view from, std::string_view to, int64_t max) {
  std::string out;
  int64_t done = 0;
  if (from.empty()) {
    size_t count = codepoint_count(s) + 1;
    if (max >= 0) count = std::min(count, static_cast<size_t>(max));
    check_string_size(s.size());
    check(to.empty() || count <= (size_t{1} << 40) / to.size(),
          "chat template: replace() makes too long a string");
    check_string_size(s.size() + count * to.size());
    size_t pos = 0;
    while (max < 0 || done < max) {
      out += to;
      ++done;
      if (pos >= s.size()) break;
      size_t begin = pos;
      next_codepoint(s, pos);
      out += s.substr(begin, pos - begin);
    }
    out += s.substr(pos);
    return out;
  }
  for (;;) {
    size_t at = max >= 0 && done >= max ? std::string_view::npos : s.find(from);
    out += s.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += to;
    check_string_size(out.size());
    s.remove_prefix(at + from.size());
    ++done;
  }
}

std::string escape_html(std::string_view s) {
  std::string out;
  for (char c : s) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace reft::jinja
