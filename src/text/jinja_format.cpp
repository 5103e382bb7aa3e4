// printf-style and brace formatting of Python.
#include <algorithm>
#include <cmath>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

__extension__ typedef unsigned __int128 UInt;

constexpr int64_t kMaxWidth = 100000;

struct Spec {
  char32_t fill = ' ';
  char align = 0;  // < > ^ =
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  char grouping = 0;
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

int64_t read_number(std::string_view s, size_t& pos) {
  int64_t n = 0;
  while (pos < s.size() && s[pos] >= '0' && s[pos] <= '9') {
    n = n * 10 + (s[pos++] - '0');
    check(n <= kMaxWidth, "chat template: a width in a format is too large");
  }
  return n;
}

std::string pad(std::string text, const Spec& spec, char default_align) {
  auto size = static_cast<int64_t>(codepoint_count(text));
  if (size >= spec.width) return text;
  char align = spec.align != 0 ? spec.align : default_align;
  int64_t total = spec.width - size;
  int64_t left = align == '>' ? total : align == '^' ? total / 2 : 0;
  std::string fill;
  append_utf8(fill, spec.fill);
  std::string before, after;
  for (int64_t i = 0; i < left; ++i) before += fill;
  for (int64_t i = left; i < total; ++i) after += fill;
  return before + text + after;
}

std::string group_digits(const std::string& digits, char separator, size_t every) {
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % every == 0) out += separator;
    out += digits[i];
  }
  return out;
}

// Sign, prefix and body, padded between sign and digits when asked.
std::string finish_number(bool negative, std::string body, const Spec& spec) {
  std::string sign = negative ? "-" : spec.sign == '+' ? "+" : spec.sign == ' ' ? " " : "";
  if (spec.align == '=' || (spec.align == 0 && spec.zero)) {
    Spec inner = spec;
    inner.width = std::max<int64_t>(spec.width - static_cast<int64_t>(sign.size()), 0);
    inner.align = '>';
    if (spec.zero) inner.fill = '0';
    return sign + pad(std::move(body), inner, '>');
  }
  return pad(sign + body, spec, '>');
}

std::string format_integer(Int value, const Spec& spec) {
  bool negative = value < 0;
  UInt rest = negative ? -static_cast<UInt>(value) : static_cast<UInt>(value);
  unsigned base = spec.type == 'x' || spec.type == 'X' ? 16
                  : spec.type == 'o'                   ? 8
                  : spec.type == 'b'                   ? 2
                                                       : 10;
  std::string digits;
  do {
    unsigned d = static_cast<unsigned>(rest % base);
    digits += d < 10 ? static_cast<char>('0' + d)
                     : static_cast<char>((spec.type == 'X' ? 'A' : 'a') + d - 10);
    rest /= base;
  } while (rest != 0);
  std::reverse(digits.begin(), digits.end());
  if (spec.grouping != 0) digits = group_digits(digits, spec.grouping, base == 10 ? 3 : 4);
  if (spec.alternate && base != 10) digits = std::string("0") + spec.type + digits;
  return finish_number(negative, digits, spec);
}

std::string format_float(double value, const Spec& spec) {
  bool negative = std::signbit(value) && !std::isnan(value);
  double magnitude = std::abs(value);
  char type = spec.type;
  std::string body;
  if (std::isnan(magnitude)) {
    body = "nan";
  } else if (std::isinf(magnitude)) {
    body = "inf";
  } else if (type == 0 && spec.precision < 0) {
    body = float_repr(magnitude);
  } else {
    auto precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
    bool percent = type == '%';
    if (percent) magnitude *= 100;
    char kind = percent ? 'f' : type == 0 || type == 'n' ? 'g' : type;
    char pattern[8] = {'%', '.', '*', kind, 0, 0, 0, 0};
    if (spec.alternate) {
      const char alternate[8] = {'%', '#', '.', '*', kind, 0, 0, 0};
      std::copy(std::begin(alternate), std::end(alternate), pattern);
    }
    auto size = std::snprintf(nullptr, 0, pattern, precision, magnitude);
    body.resize(static_cast<size_t>(size) + 1);
    std::snprintf(body.data(), body.size(), pattern, precision, magnitude);
    body.pop_back();
    if (type == 0 && body.find_first_of(".e") == std::string::npos) body += ".0";
    if (percent) body += '%';
  }
  if (spec.grouping != 0) {
    size_t end = body.find_first_not_of("0123456789");
    body = group_digits(body.substr(0, end), spec.grouping, 3) +
           (end == std::string::npos ? "" : body.substr(end));
  }
  return finish_number(negative, body, spec);
}

std::string cut_text(const std::string& text, int64_t precision) {
  return precision < 0 ? text : text.substr(0, byte_offset(text, static_cast<size_t>(precision)));
}

Int to_integer(const Value& v, char type) {
  if (v.is_undefined()) fail_undefined(v);
  check(v.is_number(), "chat template: %{} format: a number is required, not {}", type,
        type_name(v));
  if (v.is_integral()) return v.as_int();
  check(std::abs(v.as_float()) < 1e36, "chat template: a float is too large for an integer format");
  return static_cast<Int>(v.as_float());
}

std::string character(const Value& v) {
  if (v.is_string()) {
    check(codepoint_count(v.str()) == 1, "chat template: %c requires an int or a single character");
    return v.str();
  }
  Int code = to_integer(v, 'c');
  check(code >= 0 && code <= 0x10FFFF, "chat template: %c arg not in range(0x110000)");
  std::string out;
  append_utf8(out, static_cast<char32_t>(code));
  return out;
}

Spec parse_spec(std::string_view s) {
  Spec spec;
  size_t pos = 0;
  size_t after_fill = 0;
  auto is_align = [&](size_t i) {
    return i < s.size() && std::string_view("<>^=").find(s[i]) != std::string_view::npos;
  };
  if (!s.empty()) {
    char32_t c = next_codepoint(s, after_fill);
    if (is_align(after_fill)) {
      spec.fill = c;
      spec.align = s[after_fill];
      pos = after_fill + 1;
    } else if (is_align(0)) {
      spec.align = s[0];
      pos = 1;
    }
  }
  if (pos < s.size() && (s[pos] == '+' || s[pos] == '-' || s[pos] == ' ')) spec.sign = s[pos++];
  if (pos < s.size() && s[pos] == '#') spec.alternate = ++pos > 0;
  if (pos < s.size() && s[pos] == '0') spec.zero = ++pos > 0;
  spec.width = read_number(s, pos);
  if (pos < s.size() && (s[pos] == ',' || s[pos] == '_')) spec.grouping = s[pos++];
  if (pos < s.size() && s[pos] == '.') {
    ++pos;
    spec.precision = read_number(s, pos);
  }
  if (pos < s.size()) spec.type = s[pos++];
  check(pos == s.size(), "chat template: invalid format specifier '{}'", s);
  return spec;
}

std::string format_value(const Value& v, std::string_view spec_text) {
  if (spec_text.empty()) return to_str(v);
  Spec spec = parse_spec(spec_text);
  bool float_type =
      spec.type != 0 && std::string_view("eEfFgGn%").find(spec.type) != std::string_view::npos;
  if (v.is_number() && spec.type != 's') {
    if (spec.type == 'c') return pad(character(v), spec, '<');
    bool integral = v.is_integral() && !float_type;
    if (v.is(Kind::kBool) && spec.type == 0) return pad(to_str(v), spec, '<');
    check(integral || float_type || spec.type == 0,
          "chat template: unknown format code '{}' for a number", spec.type);
    check(!integral || std::string_view("\0bdoxXn", 7).find(spec.type) != std::string_view::npos,
          "chat template: unknown format code '{}' for an integer", spec.type);
    return integral ? format_integer(v.as_int(), spec) : format_float(v.number(), spec);
  }
  check(spec.type == 0 || spec.type == 's', "chat template: unknown format code '{}' for a {}",
        spec.type, type_name(v));
  check(v.is_string(), "chat template: unsupported format string passed to {}.__format__",
        type_name(v));
  return pad(cut_text(v.str(), spec.precision), spec, '<');
}

// Looks up "0.name[key]".
class BraceFormatter {
 public:
  BraceFormatter(Interpreter& interpreter, CallArgs& args)
      : interpreter_(interpreter), args_(args) {}

  std::string format(std::string_view s, int depth) {
    check(depth <= 2, "chat template: max string recursion exceeded in format()");
    std::string out;
    for (size_t pos = 0; pos < s.size();) {
      char c = s[pos++];
      if (c != '{' && c != '}') {
        out += c;
        continue;
      }
      if (pos < s.size() && s[pos] == c) {
        out += c;
        ++pos;
        continue;
      }
      check(c == '{', "chat template: single '}}' encountered in a format string");
      size_t end = pos;
      int open = 1;
      for (; end < s.size() && open > 0; ++end) open += s[end] == '{' ? 1 : s[end] == '}' ? -1 : 0;
      check(open == 0, "chat template: expected '}}' before end of a format string");
      out += field(s.substr(pos, end - 1 - pos), depth);
      check_string_size(out.size());
      pos = end;
    }
    return out;
  }

 private:
  std::string field(std::string_view s, int depth) {
    size_t colon = s.find_first_of(":!");
    size_t bracket = s.find('[');
    if (bracket != std::string_view::npos && bracket < colon)
      colon = s.find_first_of(":!", s.find(']', bracket));
    std::string_view name = s.substr(0, colon);
    std::string_view rest = colon == std::string_view::npos ? "" : s.substr(colon);
    Value v = lookup(name);
    if (!rest.empty() && rest[0] == '!') {
      check(rest.size() >= 2 && (rest[1] == 'r' || rest[1] == 's' || rest[1] == 'a'),
            "chat template: unknown conversion in a format");
      v = Value::string(rest[1] == 's' ? to_str(v) : to_repr(v));
      rest.remove_prefix(2);
    }
    check(rest.empty() || rest[0] == ':', "chat template: expected ':' after conversion specifier");
    std::string spec = rest.empty() ? "" : format(rest.substr(1), depth + 1);
    return format_value(v, spec);
  }

  Value lookup(std::string_view name) {
    size_t end = name.find_first_of(".[");
    std::string_view first = name.substr(0, end);
    Value v;
    bool digits =
        std::all_of(first.begin(), first.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (digits) {
      size_t pos = 0;
      auto index = static_cast<size_t>(first.empty() ? next_auto_++ : read_number(first, pos));
      check(index < args_.positional.size(),
            "chat template: replacement index {} out of range for format()", index);
      v = args_.positional[index];
    } else {
      auto it = std::find_if(args_.named.begin(), args_.named.end(),
                             [&](const auto& n) { return n.first == first; });
      check(it != args_.named.end(), "chat template: format(): no argument named '{}'", first);
      v = it->second;
    }
    while (end < name.size()) {
      if (name[end] == '.') {
        size_t next = name.find_first_of(".[", end + 1);
        v = interpreter_.attribute(v, std::string(name.substr(end + 1, next - end - 1)));
        end = next;
      } else {
        size_t close = name.find(']', end);
        check(name[end] == '[' && close != std::string_view::npos,
              "chat template: bad field in a format string");
        std::string key(name.substr(end + 1, close - end - 1));
        bool number =
            !key.empty() && key.size() < 10 &&
            std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
        v = interpreter_.item(v, number ? Value::integer(std::stoi(key)) : Value::string(key));
        end = close + 1;
      }
    }
    return v;
  }

  Interpreter& interpreter_;
  CallArgs& args_;
  int64_t next_auto_ = 0;
};

}  // namespace

std::string brace_format(Interpreter& interpreter, const std::string& format, CallArgs& args) {
  return BraceFormatter(interpreter, args).format(format, 0);
}

std::string percent_format(const std::string& format, const std::vector<Value>& args,
                           const Value* mapping) {
  std::string out;
  size_t used = 0;
  bool used_mapping = false;
  auto next = [&]() -> const Value& {
    check(used < args.size(), "chat template: not enough arguments for format string");
    return args[used++];
  };
  for (size_t pos = 0; pos < format.size();) {
    char c = format[pos++];
    if (c != '%') {
      out += c;
      continue;
    }
    check(pos < format.size(), "chat template: incomplete format");
    Spec spec;
    spec.align = '>';
    const Value* named = nullptr;
    if (format[pos] == '(') {
      size_t close = format.find(')', pos);
      check(close != std::string::npos, "chat template: incomplete format key");
      check(mapping != nullptr, "chat template: format requires a mapping");
      named = mapping->dict().find(std::string_view(format).substr(pos + 1, close - pos - 1));
      check(named != nullptr, "chat template: format key '{}' is missing",
            format.substr(pos + 1, close - pos - 1));
      used_mapping = true;
      pos = close + 1;
    }
    for (; pos < format.size() &&
           std::string_view("-+ #0").find(format[pos]) != std::string_view::npos;
         ++pos) {
      if (format[pos] == '-') spec.align = '<';
      if (format[pos] == '0') spec.zero = true;
      if (format[pos] == '#') spec.alternate = true;
      if (format[pos] == '+' || (format[pos] == ' ' && spec.sign != '+')) spec.sign = format[pos];
    }
    spec.width = read_number(format, pos);
    if (pos < format.size() && format[pos] == '.') {
      ++pos;
      spec.precision = read_number(format, pos);
    }
    check(pos < format.size(), "chat template: incomplete format");
    char type = format[pos++];
    if (type == '%') {
      out += '%';
      continue;
    }
    check(std::string_view("srdiuxXoeEfFgGca").find(type) != std::string_view::npos,
          "chat template: unsupported format character '{}'", type);
    const Value& v = named != nullptr ? *named : next();
    if (type == 's' || type == 'r' || type == 'a') {
      out += pad(cut_text(type == 's' ? to_str(v) : to_repr(v), spec.precision), spec, '>');
    } else if (type == 'c') {
      out += pad(character(v), spec, '>');
    } else if (std::string_view("diuxXo").find(type) != std::string_view::npos) {
      check(v.is_number() && (v.is_integral() || type == 'd' || type == 'i' || type == 'u'),
            "chat template: %{} format: a number is required, not {}", type, type_name(v));
      spec.type = type;
      if (spec.zero && spec.align == '>') spec.align = 0;
      out += format_integer(to_integer(v, type), spec);
    } else {
      if (v.is_undefined()) fail_undefined(v);
      check(v.is_number(), "chat template: must be real number, not {}", type_name(v));
      spec.type = type;
      if (spec.precision < 0) spec.precision = 6;
      if (spec.zero && spec.align == '>') spec.align = 0;
      out += format_float(v.number(), spec);
    }
    check_string_size(out.size());
  }
  check(used_mapping || used >= args.size() || mapping != nullptr,
        "chat template: not all arguments converted during string formatting");
  return out;
}

}  // namespace reft::jinja
