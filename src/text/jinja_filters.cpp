// The builtin filters, with transformers' tojson.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

std::string text_of(const Value& v) { return to_str(v); }
Value generator(std::vector<Value> items) {
  return Value::list(std::move(items), ListKind::kGenerator);
}
Value same_text_kind(const Value& v, std::string s) {
  return Value::string(std::move(s), v.is_markup());
}

template <std::string (*F)(std::string_view)>
Value map_text(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("filter", args).done();
  return same_text_kind(v, F(text_of(v)));
}

Value default_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("default()", args);
  Value fallback = reader.get("default_value", Value::string(""));
  bool falsy = reader.get_bool("boolean", false);
  reader.done();
  return v.is_undefined() || (falsy && !truthy(v)) ? fallback : v;
}

Value length_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("length", args).done();
  return Value::integer(static_cast<Int>(length_of(v)));
}

// Jinja's title: words start after white space, brackets and hyphens.
std::string title_words(std::string_view s) {
  std::string out;
  std::string word;
  auto flush = [&] {
    out += to_capitalized(word);
    word.clear();
  };
  for (size_t pos = 0; pos < s.size();) {
    char32_t c = next_codepoint(s, pos);
    if (is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<') {
      flush();
      append_utf8(out, c);
    } else {
      append_utf8(word, c);
    }
  }
  flush();
  return out;
}

Value trim_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("trim()", args);
  Value chars = reader.get("chars", Value::none());
  reader.done();
  std::string s = text_of(v);
  charge_steps(static_cast<int64_t>(s.size() / 256));
  return same_text_kind(v,
                        std::string(chars.is_none() ? strip(s, true, true)
                                                    : strip_chars(s, text_of(chars), true, true)));
}

Value replace_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("replace()", args);
  Value from = reader.require("old");
  Value to = reader.require("new");
  Value count = reader.get("count", Value::none());
  reader.done();
  check(count.is_none() || count.is_integral(),
        "chat template: replace(): count must be an integer");
  std::string s = text_of(v);
  charge_steps(static_cast<int64_t>(s.size() / 256));
  Int limit = count.is_none() ? Int{-1} : std::clamp<Int>(count.as_int(), -1, INT64_MAX);
  return Value::string(replace(s, text_of(from), text_of(to), static_cast<int64_t>(limit)));
}

Value join_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("join()", args);
  std::string separator = reader.get_string("d", "");
  Value path = reader.get("attribute", Value::none());
  reader.done();
  std::string out;
  bool first = true;
  for (Value& item : iterate(v)) {
    if (!first) out += separator;
    first = false;
    out += text_of(path.is_none() ? item : interpreter.path(item, path));
    check_string_size(out.size());
  }
  return Value::string(std::move(out));
}

Value first_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("first", args).done();
  std::vector<Value> items = iterate(v);
  return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
}
Value last_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("last", args).done();
  check(!v.is_list() || v.list_kind() != ListKind::kGenerator,
        "chat template: 'generator' object is not reversible");
  std::vector<Value> items = iterate(v);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}
Value list_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("list", args).done();
  return Value::list(iterate(v));
}
Value string_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("string", args).done();
  return v.is_string() ? v : Value::string(text_of(v));
}

bool parse_python_float(std::string_view s, double& out) {
  std::string text;
  s = strip(s, true, true);
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] == '_' && i > 0 && i + 1 < s.size()) continue;
    text += s[i];
  }
  if (text.empty() || text.find_first_of("xX") != std::string::npos) return false;
  char* end = nullptr;
  out = std::strtod(text.c_str(), &end);
  return end == text.c_str() + text.size();
}

bool parse_python_int(std::string_view s, int64_t base, Int& out) {
  s = strip(s, true, true);
  bool negative = !s.empty() && s[0] == '-';
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) s.remove_prefix(1);
  if (s.size() > 2 && s[0] == '0') {
    char kind = static_cast<char>(s[1] | 0x20);
    if ((base == 16 && kind == 'x') || (base == 8 && kind == 'o') || (base == 2 && kind == 'b'))
      s.remove_prefix(2);
  }
  if (s.empty()) return false;
  out = 0;
  for (size_t i = 0; i < s.size(); ++i) {
    char c = s[i];
    if (c == '_' && i > 0 && i + 1 < s.size() && s[i - 1] != '_') continue;
    int digit = c >= '0' && c <= '9'                     ? c - '0'
                : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10
                                                         : 99;
    if (digit >= base) return false;
    if (__builtin_mul_overflow(out, static_cast<Int>(base), &out) ||
        __builtin_add_overflow(out, static_cast<Int>(digit), &out)) {
      fail("chat template: int(): the number is too large");
    }
  }
  if (negative) out = -out;
  return true;
}

bool float_to_int(double d, Int& out) {
  if (!(std::abs(d) < 1e36)) return false;
  out = static_cast<Int>(d);
  return true;
}

Value int_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("int()", args);
  Value fallback = reader.get("default", Value::integer(0));
  int64_t base = reader.get_int("base", 10);
  reader.done();
  check(base >= 2 && base <= 36, "chat template: int(): base must be in 2..36");
  if (v.is_undefined()) fail_undefined(v);
  Int out = 0;
  if (v.is_integral()) return Value::integer(v.as_int());
  if (v.is(Kind::kFloat)) return float_to_int(v.as_float(), out) ? Value::integer(out) : fallback;
  if (!v.is_string()) return fallback;
  if (parse_python_int(v.str(), base, out)) return Value::integer(out);
  double d = 0;
  return parse_python_float(v.str(), d) && float_to_int(d, out) ? Value::integer(out) : fallback;
}

Value float_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("float()", args);
  Value fallback = reader.get("default", Value::real(0));
  reader.done();
  if (v.is_undefined()) fail_undefined(v);
  if (v.is_number()) return Value::real(v.number());
  double d = 0;
  return v.is_string() && parse_python_float(v.str(), d) ? Value::real(d) : fallback;
}

Value abs_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("abs", args).done();
  if (v.is_undefined()) fail_undefined(v);
  check(v.is_number(), "chat template: bad operand type for abs(): '{}'", type_name(v));
  if (v.is(Kind::kFloat)) return Value::real(std::abs(v.as_float()));
  return Value::integer(v.as_int() < 0 ? -v.as_int() : v.as_int());
}

// Python's round: half to even, on the decimal value.
double round_decimal(double d, int64_t digits) {
  if (!std::isfinite(d)) return d;
  if (digits >= 0)
    return std::strtod(fmt::format("{:.{}f}", d, std::min<int64_t>(digits, 320)).c_str(), nullptr);
  double scale = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(d / scale) * scale;
}

Value round_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("round()", args);
  int64_t precision = reader.get_int("precision", 0);
  std::string method = reader.get_string("method", "common");
  reader.done();
  if (v.is_undefined()) fail_undefined(v);
  check(v.is_number(), "chat template: round() takes a number, not {}", type_name(v));
  check(method == "common" || method == "ceil" || method == "floor",
        "chat template: method must be common, ceil or floor");
  check(precision > -320 && precision < 320, "chat template: round(): precision is out of range");
  if (method == "common") {
    if (v.is_integral() && precision >= 0) return Value::integer(v.as_int());
    if (v.is_integral())
      return Value::integer(static_cast<Int>(round_decimal(v.number(), precision)));
    return Value::real(round_decimal(v.as_float(), precision));
  }
  double scale = std::pow(10.0, static_cast<double>(precision));
  double scaled = v.number() * scale;
  return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value tojson_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("tojson()", args);
  DumpOptions options;
  options.ensure_ascii = reader.get_bool("ensure_ascii", false);
  Value indent = reader.get("indent", Value::none());
  Value separators = reader.get("separators", Value::none());
  options.sort_keys = reader.get_bool("sort_keys", false);
  reader.done();
  if (!indent.is_none()) {
    options.pretty = true;
    options.item_separator = ",";
    check(indent.is_string() || indent.is_integral(),
          "chat template: tojson(): indent must be an integer or a string");
    if (indent.is_string()) {
      options.indent = indent.str();
    } else {
      check(indent.as_int() <= 1000, "chat template: tojson(): indent is too large");
      options.indent.assign(static_cast<size_t>(std::max<Int>(indent.as_int(), 0)), ' ');
    }
  }
  if (!separators.is_none()) {
    std::vector<Value> parts = iterate(separators);
    check(parts.size() == 2 && parts[0].is_string() && parts[1].is_string(),
          "chat template: tojson(): separators must be two strings");
    options.item_separator = parts[0].str();
    options.key_separator = parts[1].str();
  }
  return Value::string(dump_json(v, options));
}

Value items_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader("items", args).done();
  if (v.is_undefined()) return generator({});
  check(v.is_dict(), "chat template: can only get item pairs from a mapping");
  CallArgs none;
  return generator(iterate(call_method(interpreter, v, "items", none)));
}

// Sort key: attribute path and letter case taken care of.
Value sort_key(Interpreter& interpreter, const Value& v, const Value& path, bool case_sensitive) {
  Value key = path.is_none() ? v : interpreter.path(v, path);
  return !case_sensitive && key.is_string() ? Value::string(to_lower(key.str())) : key;
}

std::vector<Value> sorted(std::vector<std::pair<Value, Value>> keyed, bool reverse) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(b.first, a.first) : less(a.first, b.first);
  });
  std::vector<Value> out;
  for (auto& entry : keyed) out.push_back(std::move(entry.second));
  return out;
}

Value dictsort_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("dictsort()", args);
  bool case_sensitive = reader.get_bool("case_sensitive", false);
  std::string by = reader.get_string("by", "key");
  bool reverse = reader.get_bool("reverse", false);
  reader.done();
  check(by == "key" || by == "value",
        "chat template: you can only sort by either \"key\" or \"value\"");
  check(v.is_dict(), "chat template: dictsort() takes a mapping, not {}", type_name(v));
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : v.dict().entries) {
    keyed.emplace_back(
        sort_key(interpreter, by == "key" ? key : value, Value::none(), case_sensitive),
        Value::tuple({key, value}));
  }
  return Value::list(sorted(std::move(keyed), reverse));
}

Value sort_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("sort()", args);
  bool reverse = reader.get_bool("reverse", false);
  bool case_sensitive = reader.get_bool("case_sensitive", false);
  Value path = reader.get("attribute", Value::none());
  reader.done();
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(v)) {
    Value key;
    if (path.is_string() && path.str().find(',') != std::string::npos) {
      std::vector<Value> keys;
      for (std::string_view part : split(path.str(), ",", -1)) {
        keys.push_back(
            sort_key(interpreter, item, Value::string(std::string(part)), case_sensitive));
      }
      key = Value::list(std::move(keys));
    } else {
      key = sort_key(interpreter, item, path, case_sensitive);
    }
    keyed.emplace_back(std::move(key), std::move(item));
  }
  return Value::list(sorted(std::move(keyed), reverse));
}

Value unique_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("unique()", args);
  bool case_sensitive = reader.get_bool("case_sensitive", false);
  Value path = reader.get("attribute", Value::none());
  reader.done();
  std::vector<Value> seen;
  std::vector<Value> out;
  for (Value& item : iterate(v)) {
    Value key = sort_key(interpreter, item, path, case_sensitive);
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& s) { return equal(s, key); }))
      continue;
    seen.push_back(std::move(key));
    out.push_back(std::move(item));
  }
  return generator(std::move(out));
}

template <bool Max>
Value extreme_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("min() and max()", args);
  bool case_sensitive = reader.get_bool("case_sensitive", false);
  Value path = reader.get("attribute", Value::none());
  reader.done();
  std::vector<Value> items = iterate(v);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  size_t best = 0;
  Value best_key = sort_key(interpreter, items[0], path, case_sensitive);
  for (size_t i = 1; i < items.size(); ++i) {
    Value key = sort_key(interpreter, items[i], path, case_sensitive);
    if (Max ? less(best_key, key) : less(key, best_key)) {
      best = i;
      best_key = std::move(key);
    }
  }
  return items[best];
}

Value sum_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("sum()", args);
  Value path = reader.get("attribute", Value::none());
  Value total = reader.get("start", Value::integer(0));
  reader.done();
  for (const Value& item : iterate(v)) {
    total =
        interpreter.binary(Op::kAdd, total, path.is_none() ? item : interpreter.path(item, path));
  }
  return total;
}

Value groupby_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("groupby()", args);
  Value path = reader.require("attribute");
  Value fallback = reader.get("default", Value::none());
  bool case_sensitive = reader.get_bool("case_sensitive", false);
  reader.done();
  struct Entry {
    Value key, shown, item;
  };
  std::vector<Entry> entries;
  for (Value& item : iterate(v)) {
    Value shown = interpreter.path(item, path, fallback);
    Value key = !case_sensitive && shown.is_string() ? Value::string(to_lower(shown.str())) : shown;
    entries.push_back({std::move(key), std::move(shown), std::move(item)});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return less(a.key, b.key); });
  std::vector<Value> out;
  for (size_t i = 0; i < entries.size();) {
    std::vector<Value> group;
    size_t first = i;
    for (; i < entries.size() && equal(entries[i].key, entries[first].key); ++i)
      group.push_back(entries[i].item);
    out.push_back(
        Value::list({entries[first].shown, Value::list(std::move(group))}, ListKind::kGroup));
  }
  return Value::list(std::move(out));
}

Value batch_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("batch()", args);
  int64_t size = reader.get_int("linecount", 1);
  Value fill = reader.get("fill_with", Value::none());
  reader.done();
  check(size > 0, "chat template: batch(): the size must be positive");
  check(current_budget() == nullptr || static_cast<size_t>(size) <= current_budget()->max_items,
        "chat template: batch() is too large");
  std::vector<Value> out;
  std::vector<Value> row;
  for (Value& item : iterate(v)) {
    row.push_back(std::move(item));
    if (static_cast<int64_t>(row.size()) == size)
      out.push_back(Value::list(std::exchange(row, {})));
  }
  if (!row.empty()) {
    while (!fill.is_none() && static_cast<int64_t>(row.size()) < size) row.push_back(fill);
    out.push_back(Value::list(std::move(row)));
  }
  return generator(std::move(out));
}

Value slice_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("slice()", args);
  int64_t slices = reader.get_int("slices", 1);
  Value fill = reader.get("fill_with", Value::none());
  reader.done();
  check(slices > 0 && slices <= 100000,
        "chat template: slice(): the number of slices is out of range");
  std::vector<Value> items = iterate(v);
  auto count = static_cast<int64_t>(items.size());
  int64_t per_slice = count / slices;
  int64_t with_extra = count % slices;
  std::vector<Value> out;
  int64_t begin = 0;
  for (int64_t i = 0; i < slices; ++i) {
    int64_t size = per_slice + (i < with_extra ? 1 : 0);
    std::vector<Value> row(items.begin() + begin, items.begin() + begin + size);
    if (!fill.is_none() && i >= with_extra) row.push_back(fill);
    out.push_back(Value::list(std::move(row)));
    begin += size;
  }
  return generator(std::move(out));
}

Value reverse_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("reverse", args).done();
  if (v.is_string()) {
    std::u32string s = decode_utf8(v.str());
    std::string out;
    for (auto it = s.rbegin(); it != s.rend(); ++it) append_utf8(out, *it);
    return same_text_kind(v, std::move(out));
  }
  std::vector<Value> items = iterate(v);
  std::reverse(items.begin(), items.end());
  return generator(std::move(items));
}

Value indent_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("indent()", args);
  Value width = reader.get("width", Value::integer(4));
  bool first = reader.get_bool("first", false);
  bool blank = reader.get_bool("blank", false);
  reader.done();
  std::string indent;
  if (width.is_string()) {
    indent = width.str();
  } else {
    check(width.is_integral() && width.as_int() <= 100000, "chat template: indent(): bad width");
    indent.assign(static_cast<size_t>(std::max<Int>(width.as_int(), 0)), ' ');
  }
  std::string s = text_of(v) + "\n";
  std::string out;
  if (blank) {
    out = replace(s.substr(0, s.size() - 1), "\n", "\n" + indent, -1);
    // Python's splitlines drops the newline that was added, and join puts none at the end.
  } else {
    std::vector<std::string_view> lines = split_lines(s, false);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (i > 0) {
        out += '\n';
        if (!lines[i].empty()) out += indent;
      }
      out += lines[i];
      check_string_size(out.size());
    }
  }
  return same_text_kind(v, first ? indent + out : out);
}

Value truncate_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("truncate()", args);
  int64_t length = reader.get_int("length", 255);
  bool kill_words = reader.get_bool("killwords", false);
  std::string end = reader.get_string("end", "...");
  Value leeway_arg = reader.get("leeway", Value::none());
  reader.done();
  int64_t leeway = leeway_arg.is_integral() ? static_cast<int64_t>(leeway_arg.as_int()) : 5;
  auto end_size = static_cast<int64_t>(codepoint_count(end));
  check(length >= end_size, "chat template: truncate(): expected length >= {}, got {}", end_size,
        length);
  std::string s = text_of(v);
  if (static_cast<int64_t>(codepoint_count(s)) <= length + leeway)
    return same_text_kind(v, std::move(s));
  std::string cut = s.substr(0, byte_offset(s, static_cast<size_t>(length - end_size)));
  if (!kill_words) cut = std::string(rsplit(cut, " ", 1)[0]);
  return same_text_kind(v, cut + end);
}

Value wordcount_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("wordcount", args).done();
  int64_t words = 0;
  bool inside = false;
  for (char32_t c : decode_utf8(text_of(v))) {
    bool word = c == '_' || is_alpha(c) || is_numeric(c);
    words += word && !inside;
    inside = word;
  }
  return Value::integer(words);
}

Value center_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("center()", args);
  CallArgs inner{{Value::integer(reader.get_int("width", 80))}, {}};
  reader.done();
  return call_method(interpreter, v.is_string() ? v : Value::string(text_of(v)), "center", inner);
}

std::string url_quote(std::string_view s, std::string_view safe) {
  std::string out;
  for (char c : s) {
    bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                 (c != 0 && std::string_view("_.-~").find(c) != std::string_view::npos) ||
                 safe.find(c) != std::string_view::npos;
    out += plain ? std::string(1, c)
                 : fmt::format("%{:02X}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return out;
}

Value urlencode_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("urlencode", args).done();
  bool pairs = v.is_dict() || (v.is_list() && !v.is_string());
  if (!pairs) return Value::string(url_quote(text_of(v), "/"));
  std::string out;
  auto add = [&](const Value& key, const Value& value) {
    if (!out.empty()) out += '&';
    out +=
        replace(url_quote(text_of(key), "") + "=" + url_quote(text_of(value), ""), "%20", "+", -1);
    check_string_size(out.size());
  };
  if (v.is_dict()) {
    for (const auto& [key, value] : v.dict().entries) add(key, value);
  } else {
    for (const Value& item : iterate(v)) {
      std::vector<Value> pair = iterate(item);
      check(pair.size() == 2, "chat template: urlencode() takes pairs");
      add(pair[0], pair[1]);
    }
  }
  return Value::string(std::move(out));
}

Value xmlattr_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("xmlattr()", args);
  bool space = reader.get_bool("autospace", true);
  reader.done();
  check(v.is_dict(), "chat template: xmlattr() takes a mapping");
  std::string out;
  for (const auto& [key, value] : v.dict().entries) {
    if (value.is_none() || value.is_undefined()) continue;
    std::string name = text_of(key);
    check(name.find_first_of(" \t\n\r\f\v/>=") == std::string::npos,
          "chat template: invalid character in attribute name: '{}'", name);
    if (!out.empty()) out += ' ';
    out += escape_html(name) + "=\"" + escape_html(text_of(value)) + "\"";
  }
  return Value::string(space && !out.empty() ? " " + out : out);
}

Value escape_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("escape", args).done();
  return v.is_markup() ? v : Value::string(escape_html(text_of(v)), true);
}
Value forceescape_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("forceescape", args).done();
  return Value::string(escape_html(text_of(v)), true);
}
Value safe_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("safe", args).done();
  return Value::string(text_of(v), true);
}

Value striptags_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader("striptags", args).done();
  std::string s = text_of(v);
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    bool comment = s.compare(pos, 4, "<!--") == 0;
    size_t end = s[pos] != '<' ? std::string::npos
                 : comment     ? s.find("-->", pos)
                               : s.find('>', pos);
    if (end == std::string::npos) {
      out += s[pos++];
    } else {
      pos = end + (comment ? 3 : 1);
    }
  }
  std::string joined;
  for (std::string_view word : split_whitespace(out, -1)) {
    if (!joined.empty()) joined += ' ';
    joined += word;
  }
  return Value::string(std::move(joined));
}

Value format_filter(Interpreter&, const Value& v, CallArgs& args) {
  check(args.positional.empty() || args.named.empty(),
        "chat template: can't handle positional and keyword arguments at the same time");
  if (args.named.empty())
    return Value::string(percent_format(text_of(v), args.positional, nullptr));
  std::vector<std::pair<Value, Value>> entries;
  for (auto& [name, value] : args.named) entries.emplace_back(Value::string(name), value);
  Value mapping = Value::dict(std::move(entries));
  return Value::string(percent_format(text_of(v), {mapping}, &mapping));
}

Value attr_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  ArgReader reader("attr()", args);
  std::string name = reader.get_string("name", "");
  reader.done();
  if (v.is_undefined()) return Value::undefined("value is undefined");
  // Attributes only, not the keys of a dict.
  if (v.is_dict() && !has_method(v, name) && !is_mutator(v, name)) {
    return Value::undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return interpreter.attribute(v, name);
}

// map(attribute=…) or map("filter", …).
Value map_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  if (!truthy(v)) return generator({});
  std::vector<Value> out;
  bool by_attribute = args.positional.empty() && !args.named.empty() &&
                      std::any_of(args.named.begin(), args.named.end(),
                                  [](const auto& n) { return n.first == "attribute"; });
  if (by_attribute) {
    Value path;
    Value fallback = Value::none();
    for (auto& [name, value] : args.named) {
      check(name == "attribute" || name == "default",
            "chat template: map(): unexpected keyword argument '{}'", name);
      (name == "attribute" ? path : fallback) = value;
    }
    for (const Value& item : iterate(v)) {
      out.push_back(interpreter.path(item, path, fallback));
    }
    return generator(std::move(out));
  }
  check(!args.positional.empty(), "chat template: map requires a filter argument");
  std::string name = text_of(args.positional[0]);
  for (const Value& item : iterate(v)) {
    CallArgs inner{{args.positional.begin() + 1, args.positional.end()}, args.named};
    out.push_back(interpreter.filter(name, item, inner));
  }
  return generator(std::move(out));
}

// select, reject, selectattr, rejectattr: an optional attribute, then a test with its arguments.
template <bool Keep, bool ByAttribute>
Value select_filter(Interpreter& interpreter, const Value& v, CallArgs& args) {
  std::vector<Value> out;
  if (!truthy(v)) return generator({});
  size_t first = ByAttribute ? 1 : 0;
  check(args.positional.size() >= first, "chat template: missing parameter for attribute name");
  for (Value& item : iterate(v)) {
    Value tested = ByAttribute ? interpreter.path(item, args.positional[0]) : item;
    bool ok = false;
    if (args.positional.size() > first) {
      CallArgs inner{
          {args.positional.begin() + static_cast<std::ptrdiff_t>(first) + 1, args.positional.end()},
          args.named};
      ok = interpreter.test(text_of(args.positional[first]), tested, inner);
    } else {
      ok = truthy(tested);
    }
    if (ok == Keep) out.push_back(std::move(item));
  }
  return generator(std::move(out));
}

Value filesizeformat_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("filesizeformat()", args);
  bool binary = reader.get_bool("binary", false);
  reader.done();
  CallArgs none;
  double bytes = v.is_number() ? v.number() : std::strtod(text_of(v).c_str(), nullptr);
  double base = binary ? 1024 : 1000;
  static constexpr const char* kDecimal[] = {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
  static constexpr const char* kBinary[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"};
  if (bytes == 1) return Value::string("1 Byte");
  if (bytes < base) return Value::string(fmt::format("{} Bytes", static_cast<int64_t>(bytes)));
  double unit = base;
  for (int i = 0;; ++i) {
    unit *= base;
    if (bytes < unit || i == 7)
      return Value::string(
          fmt::format("{:.1f} {}", base * bytes / unit, (binary ? kBinary : kDecimal)[i]));
  }
}

// Breaks lines longer than `width` at white space.
Value wordwrap_filter(Interpreter&, const Value& v, CallArgs& args) {
  ArgReader reader("wordwrap()", args);
  int64_t width = reader.get_int("width", 79);
  bool break_long = reader.get_bool("break_long_words", true);
  Value wrap = reader.get("wrapstring", Value::none());
  reader.done();
  check(width > 0, "chat template: wordwrap(): the width must be positive");
  std::string newline = wrap.is_string() ? wrap.str() : "\n";
  auto limit = static_cast<size_t>(width);
  std::string text = text_of(v);
  std::string out;
  bool first_line = true;
  for (std::string_view line : split_lines(text, false)) {
    if (!first_line) out += newline;
    first_line = false;
    std::string row;
    bool wrapped = false;
    auto flush = [&] {
      out += (wrapped ? newline : "") + std::string(strip(row, false, true));
      wrapped = true;
      row.clear();
      check_string_size(out.size());
    };
    for (std::string_view part : split(line, " ", -1)) {
      std::string word(part);
      if (!row.empty() && codepoint_count(row) + codepoint_count(word) > limit) flush();
      while (break_long && codepoint_count(word) > limit) {
        size_t cut = byte_offset(word, limit - std::min(codepoint_count(row), limit - 1));
        row += word.substr(0, cut);
        word.erase(0, cut);
        flush();
      }
      row += word + " ";
    }
    if (!strip(row, true, true).empty()) flush();
  }
  return same_text_kind(v, std::move(out));
}

}  // namespace

FilterFunction find_filter(std::string_view name) {
  static const std::unordered_map<std::string_view, FilterFunction> table = {
      {"abs", abs_filter},
      {"attr", attr_filter},
      {"batch", batch_filter},
      {"capitalize", map_text<to_capitalized>},
      {"center", center_filter},
      {"count", length_filter},
      {"d", default_filter},
      {"default", default_filter},
      {"dictsort", dictsort_filter},
      {"e", escape_filter},
      {"escape", escape_filter},
      {"filesizeformat", filesizeformat_filter},
      {"first", first_filter},
      {"float", float_filter},
      {"forceescape", forceescape_filter},
      {"format", format_filter},
      {"groupby", groupby_filter},
      {"indent", indent_filter},
      {"int", int_filter},
      {"items", items_filter},
      {"join", join_filter},
      {"last", last_filter},
      {"length", length_filter},
      {"list", list_filter},
      {"lower", map_text<to_lower>},
      {"map", map_filter},
      {"max", extreme_filter<true>},
      {"min", extreme_filter<false>},
      {"reject", select_filter<false, false>},
      {"rejectattr", select_filter<false, true>},
      {"replace", replace_filter},
      {"reverse", reverse_filter},
      {"round", round_filter},
      {"safe", safe_filter},
      {"select", select_filter<true, false>},
      {"selectattr", select_filter<true, true>},
      {"slice", slice_filter},
      {"sort", sort_filter},
      {"string", string_filter},
      {"striptags", striptags_filter},
      {"sum", sum_filter},
      {"title", map_text<title_words>},
      {"tojson", tojson_filter},
      {"trim", trim_filter},
      {"truncate", truncate_filter},
      {"unique", unique_filter},
      {"upper", map_text<to_upper>},
      {"urlencode", urlencode_filter},
      {"wordcount", wordcount_filter},
      {"wordwrap", wordwrap_filter},
      {"xmlattr", xmlattr_filter},
  };
  auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

}  // namespace reft::jinja
