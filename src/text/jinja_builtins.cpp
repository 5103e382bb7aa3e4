// The tests (`x is …`) and the globals of chat templates.
#include <algorithm>
#include <ctime>
#include <unordered_map>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

constexpr Int kMaxRange = 100000;  // as Jinja's sandbox

template <class F>
TestFunction plain(F f) {
  return f;
}

Value one_argument(std::string_view what, CallArgs& args) {
  ArgReader reader(what, args);
  Value v = reader.require("other");
  reader.done();
  return v;
}

template <Kind K>
bool is_kind(Interpreter&, const Value& v, CallArgs&) {
  return v.kind() == K;
}
bool is_iterable(Interpreter&, const Value& v, CallArgs&) {
  return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined() || v.is(Kind::kLoop);
}
// Has a length and items, as Jinja's test asks: text and dicts too.
bool is_sequence(Interpreter&, const Value& v, CallArgs&) {
  if (v.is_list()) {
    ListKind k = v.list_kind();
    return k <= ListKind::kGroup || k == ListKind::kRange;
  }
  return v.is_string() || v.is_dict() || v.is_undefined();
}
bool is_callable(Interpreter&, const Value& v, CallArgs&) {
  return v.is(Kind::kCallable) || v.is(Kind::kLoop);
}

bool is_remainder(const Value& v, Int divisor, Int rest) {
  if (v.is_undefined()) fail_undefined(v);
  check(v.is_number(), "chat template: this test takes a number, not {}", type_name(v));
  check(divisor != 0, "chat template: division by zero");
  if (v.is(Kind::kFloat)) {
    double r = __builtin_fmod(v.as_float(), static_cast<double>(divisor));
    return r == static_cast<double>(rest) ||
           r + static_cast<double>(divisor) == static_cast<double>(rest);
  }
  Int r = v.as_int() % divisor;
  return r == rest || (r < 0 && r + divisor == rest);
}

bool same_as(Interpreter&, const Value& v, CallArgs& args) {
  Value other = one_argument("sameas", args);
  if (v.kind() != other.kind()) return false;
  if (v.is_list() || v.is_dict() || v.is(Kind::kNamespace) || v.is(Kind::kCallable) ||
      v.is(Kind::kLoop)) {
    return v.identity() == other.identity();
  }
  return equal(v, other);
}

template <Op O>
bool compare(Interpreter&, const Value& v, CallArgs& args) {
  Value other = one_argument("comparison", args);
  switch (O) {
    case Op::kEq:
      return equal(v, other);
    case Op::kNe:
      return !equal(v, other);
    case Op::kLt:
      return less(v, other);
    case Op::kGt:
      return less(other, v);
    case Op::kLe:
      return less(v, other) || equal(v, other);
    case Op::kGe:
      return less(other, v) || equal(v, other);
    default:
      return contains(other, v);
  }
}

Value range_global(Interpreter&, CallArgs& args) {
  check(args.named.empty() && !args.positional.empty() && args.positional.size() <= 3,
        "chat template: range() takes 1 to 3 arguments");
  for (const Value& v : args.positional) {
    if (v.is_undefined()) fail_undefined(v);
    check(v.is_integral(), "chat template: range() takes integers, not {}", type_name(v));
  }
  bool one = args.positional.size() == 1;
  Int start = one ? 0 : args.positional[0].as_int();
  Int stop = args.positional[one ? 0 : 1].as_int();
  Int step = args.positional.size() == 3 ? args.positional[2].as_int() : 1;
  check(step != 0, "chat template: range() arg 3 must not be zero");
  constexpr Int kBound = Int{1} << 62;
  check(start > -kBound && start < kBound && stop > -kBound && stop < kBound && step > -kBound &&
            step < kBound,
        "chat template: range() arguments are too large");
  Int count = step > 0 ? (stop - start + step - 1) / step : (start - stop - step - 1) / -step;
  check(count <= kMaxRange, "chat template: range too big: the limit is {} items",
        static_cast<int64_t>(kMaxRange));
  std::vector<Value> items;
  for (Int i = 0; i < count; ++i) items.push_back(Value::integer(start + i * step));
  Value range = Value::list(std::move(items), ListKind::kRange);
  auto& node = range.node<ListNode>();
  node.start = start;
  node.stop = stop;
  node.step = step;
  return range;
}

// Entries from an optional mapping or list of pairs, then keywords.
std::vector<std::pair<Value, Value>> dict_entries(std::string_view what, CallArgs& args) {
  std::vector<std::pair<Value, Value>> entries;
  check(args.positional.size() <= 1, "chat template: {} takes at most one positional argument",
        what);
  if (!args.positional.empty()) {
    const Value& v = args.positional[0];
    if (v.is_dict()) {
      entries = v.dict().entries;
    } else {
      for (const Value& item : iterate(v)) {
        std::vector<Value> pair = iterate(item);
        check(pair.size() == 2, "chat template: {} takes pairs", what);
        entries.emplace_back(pair[0], pair[1]);
      }
    }
  }
  for (auto& [name, value] : args.named) entries.emplace_back(Value::string(name), value);
  return entries;
}

Value dict_global(Interpreter&, CallArgs& args) {
  return Value::dict(dict_entries("dict()", args));
}

Value namespace_global(Interpreter& interpreter, CallArgs& args) {
  auto node = std::make_shared<NamespaceNode>();
  node->charge(sizeof(NamespaceNode) + 64);
  for (auto& [key, value] : dict_entries("namespace()", args)) {
    std::string name = to_str(key);
    check(name.empty() || name[0] != '_',
          "chat template: a namespace attribute must not start with '_': '{}'", name);
    node->set(name, value);
  }
  interpreter.budget().namespaces.push_back(node);
  return Value::of(Kind::kNamespace, std::move(node));
}

Value raise_exception(Interpreter&, CallArgs& args) {
  ArgReader reader("raise_exception()", args);
  std::string message = reader.get_string("message", "");
  reader.done();
  throw RaisedError(message);
}

Value strftime_now(Interpreter&, CallArgs& args) {
  ArgReader reader("strftime_now()", args);
  std::string format = reader.get_string("format", "");
  reader.done();
  check(format.size() <= 4096, "chat template: strftime_now(): the format is too long");
  auto now = std::chrono::system_clock::now();
  std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count() %
      1000000;
  format = replace(format, "%f", fmt::format("{:06d}", micros), -1);
  // Widths ("%10000000Y") would allocate at will.
  for (size_t i = 0; i + 1 < format.size(); ++i) {
    if (format[i] != '%') continue;
    size_t digits = i + 1;
    while (digits < format.size() &&
           (format[digits] == '-' || format[digits] == '_' || format[digits] == '^' ||
            format[digits] == '#' || (format[digits] >= '0' && format[digits] <= '9'))) {
      ++digits;
    }
    check(digits - i <= 5, "chat template: strftime_now(): bad format");
    if (format[i + 1] == '%') ++i;
  }
  std::tm local{};
  localtime_r(&seconds, &local);
  if (format.empty()) return Value::string("");
  std::string out(format.size() * 32 + 4096, '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &local));
  return Value::string(std::move(out));
}

Value cycler_global(Interpreter&, CallArgs& args) {
  check(!args.positional.empty() && args.named.empty(),
        "chat template: cycler() takes at least one item");
  auto items = std::make_shared<std::vector<Value>>(args.positional);
  auto position = std::make_shared<size_t>(0);
  Value cycler = Value::callable("cycler", [](Interpreter&, CallArgs&) -> Value {
    fail("chat template: 'Cycler' object is not callable");
  });
  cycler.node<CallableNode>().attribute = [items, position](const std::string& name) {
    if (name == "current") return (*items)[*position];
    if (name == "next") {
      return Value::callable("next", [items, position](Interpreter&, CallArgs&) {
        Value v = (*items)[*position];
        *position = (*position + 1) % items->size();
        return v;
      });
    }
    if (name == "reset") {
      return Value::callable("reset", [position](Interpreter&, CallArgs&) {
        *position = 0;
        return Value::none();
      });
    }
    return Value::undefined("'Cycler object' has no attribute '" + name + "'");
  };
  return cycler;
}

Value joiner_global(Interpreter&, CallArgs& args) {
  ArgReader reader("joiner()", args);
  std::string separator = reader.get_string("sep", ", ");
  reader.done();
  auto used = std::make_shared<bool>(false);
  return Value::callable("joiner", [separator, used](Interpreter&, CallArgs&) {
    return Value::string(std::exchange(*used, true) ? separator : "");
  });
}

}  // namespace

TestFunction find_test(std::string_view name) {
  static const std::unordered_map<std::string_view, TestFunction> table = {
      {"defined", [](Interpreter&, const Value& v, CallArgs&) { return !v.is_undefined(); }},
      {"undefined", is_kind<Kind::kUndefined>},
      {"none", is_kind<Kind::kNone>},
      {"string", is_kind<Kind::kString>},
      {"integer", is_kind<Kind::kInt>},
      {"float", is_kind<Kind::kFloat>},
      {"boolean", is_kind<Kind::kBool>},
      {"mapping", is_kind<Kind::kDict>},
      {"number", [](Interpreter&, const Value& v, CallArgs&) { return v.is_number(); }},
      {"sequence", is_sequence},
      {"iterable", is_iterable},
      {"callable", is_callable},
      {"true",
       [](Interpreter&, const Value& v, CallArgs&) { return v.is(Kind::kBool) && v.as_bool(); }},
      {"false",
       [](Interpreter&, const Value& v, CallArgs&) { return v.is(Kind::kBool) && !v.as_bool(); }},
      {"odd", [](Interpreter&, const Value& v, CallArgs&) { return is_remainder(v, 2, 1); }},
      {"even", [](Interpreter&, const Value& v, CallArgs&) { return is_remainder(v, 2, 0); }},
      {"divisibleby",
       [](Interpreter&, const Value& v, CallArgs& args) {
         Value by = one_argument("divisibleby", args);
         check(by.is_integral(), "chat template: divisibleby() takes an integer");
         return is_remainder(v, by.as_int(), 0);
       }},
      {"lower",
       [](Interpreter&, const Value& v, CallArgs&) {
         std::string s = to_str(v);
         return s == to_lower(s) && s != to_upper(s);
       }},
      {"upper",
       [](Interpreter&, const Value& v, CallArgs&) {
         std::string s = to_str(v);
         return s == to_upper(s) && s != to_lower(s);
       }},
      {"escaped", [](Interpreter&, const Value& v, CallArgs&) { return v.is_markup(); }},
      {"filter", [](Interpreter&, const Value& v,
                    CallArgs&) { return v.is_string() && find_filter(v.str()) != nullptr; }},
      {"test", [](Interpreter&, const Value& v,
                  CallArgs&) { return v.is_string() && find_test(v.str()) != nullptr; }},
      {"sameas", same_as},
      {"in", compare<Op::kIn>},
      {"eq", compare<Op::kEq>},
      {"equalto", compare<Op::kEq>},
      {"==", compare<Op::kEq>},
      {"ne", compare<Op::kNe>},
      {"!=", compare<Op::kNe>},
      {"lt", compare<Op::kLt>},
      {"lessthan", compare<Op::kLt>},
      {"<", compare<Op::kLt>},
      {"le", compare<Op::kLe>},
      {"<=", compare<Op::kLe>},
      {"gt", compare<Op::kGt>},
      {"greaterthan", compare<Op::kGt>},
      {">", compare<Op::kGt>},
      {"ge", compare<Op::kGe>},
      {">=", compare<Op::kGe>},
  };
  auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

bool find_global(std::string_view name, Value& out) {
  static const std::unordered_map<std::string_view, Value (*)(Interpreter&, CallArgs&)> table = {
      {"range", range_global},         {"dict", dict_global},
      {"namespace", namespace_global}, {"raise_exception", raise_exception},
      {"strftime_now", strftime_now},  {"cycler", cycler_global},
      {"joiner", joiner_global},
  };
  auto it = table.find(name);
  if (it == table.end()) return false;
  out = Value::callable(std::string(name), it->second);
  return true;
}

}  // namespace reft::jinja
