// Methods of str, list, tuple and dict.
#include <algorithm>
#include <unordered_map>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

using Method = Value (*)(Interpreter&, const Value& self, CallArgs& args);

Value text_like(const Value& self, std::string_view s) {
  return Value::string(std::string(s), self.is_markup());
}

template <std::string (*F)(std::string_view)>
Value map_text(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("str method", args).done();
  return Value::string(F(self.str()), self.is_markup());
}

template <bool Left, bool Right>
Value strip_method(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("strip()", args);
  Value chars = reader.get("chars", Value::none());
  reader.done();
  charge_steps(static_cast<int64_t>(self.str().size() / 256));
  if (chars.is_none()) return text_like(self, strip(self.str(), Left, Right));
  check(chars.is_string(), "chat template: strip() takes a string, not {}", type_name(chars));
  return text_like(self, strip_chars(self.str(), chars.str(), Left, Right));
}

Value to_list(const Value& self, const std::vector<std::string_view>& parts) {
  std::vector<Value> out;
  out.reserve(parts.size());
  for (std::string_view part : parts) out.push_back(text_like(self, part));
  return Value::list(std::move(out));
}

template <bool FromRight>
Value split_method(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("split()", args);
  Value separator = reader.get("sep", Value::none());
  int64_t max_splits = reader.get_int("maxsplit", -1);
  reader.done();
  const std::string& s = self.str();
  charge_steps(static_cast<int64_t>(s.size() / 64));
  if (separator.is_none()) {
    return to_list(self,
                   FromRight ? rsplit_whitespace(s, max_splits) : split_whitespace(s, max_splits));
  }
  check(separator.is_string(), "chat template: split() takes a string, not {}",
        type_name(separator));
  return to_list(self, FromRight ? rsplit(s, separator.str(), max_splits)
                                 : split(s, separator.str(), max_splits));
}

Value splitlines(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("splitlines()", args);
  bool keep = reader.get_bool("keepends", false);
  reader.done();
  return to_list(self, split_lines(self.str(), keep));
}

template <bool FromRight>
Value partition(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("partition()", args);
  Value separator = reader.require("sep");
  reader.done();
  check(separator.is_string() && !separator.str().empty(),
        "chat template: partition() takes a non-empty string");
  const std::string& s = self.str();
  size_t at = FromRight ? s.rfind(separator.str()) : s.find(separator.str());
  if (at == std::string::npos) {
    Value empty = Value::string("");
    return FromRight ? Value::tuple({empty, empty, self}) : Value::tuple({self, empty, empty});
  }
  return Value::tuple({text_like(self, s.substr(0, at)), separator,
                       text_like(self, s.substr(at + separator.str().size()))});
}

// The part of `s` that str methods' optional start and end select, in bytes.
std::pair<size_t, size_t> byte_range(const std::string& s, ArgReader& reader) {
  Value start = reader.get("start", Value::none());
  Value end = reader.get("end", Value::none());
  auto size = static_cast<Int>(codepoint_count(s));
  auto resolve = [&](const Value& v, Int fallback) {
    if (v.is_none()) return fallback;
    check(v.is_integral(), "chat template: slice indices must be integers or None");
    Int i = v.as_int();
    return i < 0 ? std::max<Int>(i + size, 0) : i;
  };
  Int first = resolve(start, 0);
  Int last = std::min(resolve(end, size), size);
  if (first > last) return {1, 0};
  return {byte_offset(s, static_cast<size_t>(first)), byte_offset(s, static_cast<size_t>(last))};
}

template <bool AtEnd>
Value starts_or_ends(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader(AtEnd ? "endswith()" : "startswith()", args);
  Value affix = reader.require("prefix");
  auto [begin, end] = byte_range(self.str(), reader);
  reader.done();
  if (begin > end) return Value::boolean(false);
  std::string_view s = std::string_view(self.str()).substr(begin, end - begin);
  auto matches = [&](const Value& v) {
    check(v.is_string(), "chat template: {} first arg must be str or a tuple of str, not {}",
          AtEnd ? "endswith" : "startswith", type_name(v));
    const std::string& a = v.str();
    return s.size() >= a.size() && s.substr(AtEnd ? s.size() - a.size() : 0, a.size()) == a;
  };
  if (affix.is_list() && affix.list_kind() == ListKind::kTuple) {
    return Value::boolean(std::any_of(affix.items().begin(), affix.items().end(), matches));
  }
  return Value::boolean(matches(affix));
}

template <bool FromRight, bool Throws>
Value find_method(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("find()", args);
  Value sub = reader.require("sub");
  const std::string& s = self.str();
  auto [begin, end] = byte_range(s, reader);
  reader.done();
  check(sub.is_string(), "chat template: find() takes a string, not {}", type_name(sub));
  charge_steps(static_cast<int64_t>(s.size() / 256));
  size_t at = std::string::npos;
  if (begin <= end) {
    std::string_view part = std::string_view(s).substr(begin, end - begin);
    at = FromRight ? part.rfind(sub.str()) : part.find(sub.str());
  }
  if (at == std::string::npos) {
    check(!Throws, "chat template: substring not found");
    return Value::integer(-1);
  }
  return Value::integer(
      static_cast<Int>(codepoint_count(std::string_view(s).substr(0, begin + at))));
}

Value count_method(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("count()", args);
  Value sub = reader.require("sub");
  auto [begin, end] = byte_range(self.str(), reader);
  reader.done();
  check(sub.is_string(), "chat template: count() takes a string, not {}", type_name(sub));
  if (begin > end) return Value::integer(0);
  std::string_view s = std::string_view(self.str()).substr(begin, end - begin);
  if (sub.str().empty()) return Value::integer(static_cast<Int>(codepoint_count(s)) + 1);
  return Value::integer(static_cast<Int>(split(s, sub.str(), -1).size()) - 1);
}

Value replace_method(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("replace()", args);
  Value from = reader.require("old");
  Value to = reader.require("new");
  int64_t count = reader.get_int("count", -1);
  reader.done();
  check(from.is_string() && to.is_string(), "chat template: replace() takes strings");
  charge_steps(static_cast<int64_t>(self.str().size() / 256));
  return text_like(self, replace(self.str(), from.str(), to.str(), count));
}

Value join_method(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("join()", args);
  std::vector<Value> items = iterate(reader.require("iterable"));
  reader.done();
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    check(items[i].is_string(), "chat template: sequence item {}: expected str instance, {} found",
          i, type_name(items[i]));
    if (i > 0) out += self.str();
    check_string_size(out.size() + items[i].str().size());
    out += items[i].str();
  }
  return Value::string(std::move(out));
}

Value format_method(Interpreter& interpreter, const Value& self, CallArgs& args) {
  return Value::string(brace_format(interpreter, self.str(), args));
}

Value format_map(Interpreter& interpreter, const Value& self, CallArgs& args) {
  ArgReader reader("format_map()", args);
  Value mapping = reader.require("mapping");
  reader.done();
  check(mapping.is_dict(), "chat template: format_map() takes a mapping");
  CallArgs named;
  for (const auto& [key, value] : mapping.dict().entries)
    named.named.emplace_back(to_str(key), value);
  return Value::string(brace_format(interpreter, self.str(), named));
}

template <bool (*F)(char32_t)>
Value all_chars(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("str method", args).done();
  std::u32string s = decode_utf8(self.str());
  return Value::boolean(!s.empty() && std::all_of(s.begin(), s.end(), F));
}
bool is_alnum(char32_t c) { return is_alpha(c) || is_numeric(c); }
bool is_ascii_char(char32_t c) { return c < 0x80; }

// isupper / islower: at least one cased character, and none of the other case.
template <bool Upper>
Value one_case(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("str method", args).done();
  bool any = false;
  for (char32_t c : decode_utf8(self.str())) {
    if (Upper ? is_lower(c) : is_upper(c)) return Value::boolean(false);
    any = any || (Upper ? is_upper(c) : is_lower(c));
  }
  return Value::boolean(any);
}
Value is_title(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("istitle()", args).done();
  return Value::boolean(to_title(self.str()) == self.str() && to_lower(self.str()) != self.str());
}
Value is_identifier(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("isidentifier()", args).done();
  std::u32string s = decode_utf8(self.str());
  auto ok = [](char32_t c) { return c == '_' || is_alnum(c); };
  return Value::boolean(!s.empty() && !is_digit(s[0]) && std::all_of(s.begin(), s.end(), ok));
}

enum class Align { kLeft, kRight, kCenter };
template <Align A>
Value pad(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("ljust(), rjust() and center()", args);
  int64_t width = reader.get_int("width", 0);
  std::string fill = reader.get_string("fillchar", " ");
  reader.done();
  auto size = static_cast<int64_t>(codepoint_count(self.str()));
  int64_t total = width - size;
  if (total <= 0) return self;
  check_string_size(static_cast<size_t>(width));
  int64_t left = A == Align::kLeft    ? 0
                 : A == Align::kRight ? total
                                      : total / 2 + (total & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += self.str();
  for (int64_t i = left; i < total; ++i) out += fill;
  return text_like(self, out);
}

Value zfill(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("zfill()", args);
  int64_t width = reader.get_int("width", 0);
  reader.done();
  const std::string& s = self.str();
  auto size = static_cast<int64_t>(codepoint_count(s));
  if (width <= size) return self;
  check_string_size(static_cast<size_t>(width));
  bool sign = !s.empty() && (s[0] == '-' || s[0] == '+');
  return text_like(self, s.substr(0, sign ? 1 : 0) +
                             std::string(static_cast<size_t>(width - size), '0') +
                             s.substr(sign ? 1 : 0));
}

template <bool Prefix>
Value remove_affix(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("removeprefix()", args);
  std::string affix = reader.get_string("prefix", "");
  reader.done();
  const std::string& s = self.str();
  if (affix.empty() || s.size() < affix.size()) return self;
  if (Prefix) return s.rfind(affix, 0) == 0 ? text_like(self, s.substr(affix.size())) : self;
  size_t keep = s.size() - affix.size();
  return s.compare(keep, affix.size(), affix) == 0 ? text_like(self, s.substr(0, keep)) : self;
}

Value expandtabs(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("expandtabs()", args);
  int64_t size = std::clamp<int64_t>(reader.get_int("tabsize", 8), 0, 1000);
  reader.done();
  std::string out;
  int64_t column = 0;
  for (char c : self.str()) {
    if (c == '\t') {
      int64_t n = size > 0 ? size - column % size : 0;
      out.append(static_cast<size_t>(n), ' ');
      column += n;
      check_string_size(out.size());
      continue;
    }
    out += c;
    if (c == '\n' || c == '\r') {
      column = 0;
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
      ++column;
    }
  }
  return text_like(self, out);
}

Value list_index(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("index()", args);
  Value wanted = reader.require("value");
  int64_t start = reader.get_int("start", 0);
  int64_t stop = reader.get_int("stop", INT64_MAX / 4);
  reader.done();
  auto size = static_cast<int64_t>(self.items().size());
  if (start < 0) start = std::max<int64_t>(start + size, 0);
  if (stop < 0) stop += size;
  for (int64_t i = start; i < std::min(stop, size); ++i) {
    if (equal(self.items()[static_cast<size_t>(i)], wanted)) return Value::integer(i);
  }
  fail("chat template: {} is not in list", to_repr(wanted));
}
Value list_count(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("count()", args);
  Value wanted = reader.require("value");
  reader.done();
  auto n = std::count_if(self.items().begin(), self.items().end(),
                         [&](const Value& v) { return equal(v, wanted); });
  return Value::integer(n);
}
Value copy(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("copy()", args).done();
  return self;
}

Value dict_get(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader reader("get()", args);
  Value key = reader.require("key");
  Value fallback = reader.get("default", Value::none());
  reader.done();
  const Value* v = self.dict().find(key);
  return v != nullptr ? *v : fallback;
}
Value dict_items(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("items()", args).done();
  std::vector<Value> out;
  for (const auto& [key, value] : self.dict().entries) out.push_back(Value::tuple({key, value}));
  return Value::list(std::move(out), ListKind::kItems);
}
Value dict_keys(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("keys()", args).done();
  return Value::list(iterate(self), ListKind::kKeys);
}
Value dict_values(Interpreter&, const Value& self, CallArgs& args) {
  ArgReader("values()", args).done();
  std::vector<Value> out;
  for (const auto& entry : self.dict().entries) out.push_back(entry.second);
  return Value::list(std::move(out), ListKind::kValues);
}

using MethodTable = std::unordered_map<std::string_view, Method>;

const MethodTable& string_methods() {
  static const MethodTable table = {
      {"upper", map_text<to_upper>},
      {"lower", map_text<to_lower>},
      {"casefold", map_text<to_lower>},
      {"title", map_text<to_title>},
      {"capitalize", map_text<to_capitalized>},
      {"swapcase", map_text<swap_case>},
      {"strip", strip_method<true, true>},
      {"lstrip", strip_method<true, false>},
      {"rstrip", strip_method<false, true>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"splitlines", splitlines},
      {"partition", partition<false>},
      {"rpartition", partition<true>},
      {"startswith", starts_or_ends<false>},
      {"endswith", starts_or_ends<true>},
      {"find", find_method<false, false>},
      {"rfind", find_method<true, false>},
      {"index", find_method<false, true>},
      {"rindex", find_method<true, true>},
      {"count", count_method},
      {"replace", replace_method},
      {"join", join_method},
      {"format", format_method},
      {"format_map", format_map},
      {"isalpha", all_chars<is_alpha>},
      {"isdigit", all_chars<is_digit>},
      {"isdecimal", all_chars<is_digit>},
      {"isnumeric", all_chars<is_numeric>},
      {"isalnum", all_chars<is_alnum>},
      {"isspace", all_chars<is_space>},
      {"isascii", all_chars<is_ascii_char>},
      {"isupper", one_case<true>},
      {"islower", one_case<false>},
      {"istitle", is_title},
      {"isidentifier", is_identifier},
      {"ljust", pad<Align::kLeft>},
      {"rjust", pad<Align::kRight>},
      {"center", pad<Align::kCenter>},
      {"zfill", zfill},
      {"removeprefix", remove_affix<true>},
      {"removesuffix", remove_affix<false>},
      {"expandtabs", expandtabs},
  };
  return table;
}
const MethodTable& list_methods() {
  static const MethodTable table = {{"index", list_index}, {"count", list_count}, {"copy", copy}};
  return table;
}
const MethodTable& dict_methods() {
  static const MethodTable table = {{"get", dict_get},
                                    {"items", dict_items},
                                    {"keys", dict_keys},
                                    {"values", dict_values},
                                    {"copy", copy}};
  return table;
}

Method find_method_of(const Value& object, std::string_view name) {
  const MethodTable* table = object.is_string() ? &string_methods()
                             : object.is_dict() ? &dict_methods()
                                                : nullptr;
  if (object.is_list() && object.list_kind() <= ListKind::kRange &&
      object.list_kind() != ListKind::kGenerator) {
    if (name == "copy" && object.list_kind() != ListKind::kList) return nullptr;
    table = &list_methods();
  }
  if (table == nullptr) return nullptr;
  auto it = table->find(name);
  return it == table->end() ? nullptr : it->second;
}

}  // namespace

bool has_method(const Value& object, std::string_view name) {
  return find_method_of(object, name) != nullptr;
}

bool is_mutator(const Value& object, std::string_view name) {
  static constexpr std::string_view kList[] = {"append", "clear", "pop",    "reverse",
                                               "insert", "sort",  "extend", "remove"};
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (object.is_list() && object.list_kind() == ListKind::kList) {
    return std::find(std::begin(kList), std::end(kList), name) != std::end(kList);
  }
  return object.is_dict() && std::find(std::begin(kDict), std::end(kDict), name) != std::end(kDict);
}

Value call_method(Interpreter& interpreter, const Value& object, const std::string& name,
                  CallArgs& args) {
  Method method = find_method_of(object, name);
  check(method != nullptr, "chat template: '{}' object has no method '{}'", type_name(object),
        name);
  return method(interpreter, object, args);
}

}  // namespace reft::jinja
