#include "text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

constexpr int kMaxDepth = 600;  // of nested containers (a JSON body is cut at 512)
constexpr size_t kIndexFrom = 12;

thread_local Budget* g_budget = nullptr;

int depth_of(const Value& v) {
  switch (v.kind()) {
    case Kind::kList:
      return v.node<ListNode>().depth;
    case Kind::kDict:
      return v.node<DictNode>().depth;
    case Kind::kNamespace:
      return v.node<NamespaceNode>().depth;
    default:
      return 0;
  }
}

int checked_depth(int depth) {
  check(depth <= kMaxDepth, "chat template: values are nested deeper than {}", kMaxDepth);
  return depth;
}

}  // namespace

Budget* current_budget() { return g_budget; }
BudgetScope::BudgetScope(Budget* budget) : previous_(g_budget) { g_budget = budget; }
BudgetScope::~BudgetScope() { g_budget = previous_; }

void Budget::slow_check() {
  next_check_ = steps + 2048;
  check(steps <= max_steps, "chat template: more than {} steps", max_steps);
  check(std::chrono::steady_clock::now() < deadline,
        "chat template: rendering takes longer than {} ms", max_time.count());
}

void check_string_size(size_t bytes) {
  if (g_budget != nullptr) g_budget->check_string(bytes);
}
void charge_steps(int64_t n) {
  if (g_budget != nullptr) g_budget->tick(n);
}

void ChargedNode::charge(size_t bytes) {
  if (g_budget == nullptr) return;
  budget_ = g_budget;
  bytes_ += bytes;
  budget_->live_bytes += bytes;
  check(budget_->live_bytes <= budget_->max_live_bytes,
        "chat template: values take more than {} bytes", budget_->max_live_bytes);
}
ChargedNode::~ChargedNode() {
  if (budget_ != nullptr) budget_->live_bytes -= bytes_;
}

Value Value::string(std::string s, bool markup) {
  check_string_size(s.size());
  charge_steps(static_cast<int64_t>(s.size() / 256));
  auto node = std::make_shared<StringNode>();
  node->charge(s.size() + sizeof(StringNode));
  node->text = std::move(s);
  node->markup = markup;
  return of(Kind::kString, std::move(node));
}

Value Value::list(std::vector<Value> items, ListKind kind) {
  auto node = std::make_shared<ListNode>();
  node->charge(items.size() * sizeof(Value) + sizeof(ListNode));
  charge_steps(static_cast<int64_t>(items.size() / 16));
  for (const Value& item : items) node->depth = std::max(node->depth, depth_of(item) + 1);
  checked_depth(node->depth);
  node->items = std::move(items);
  node->kind = kind;
  return of(Kind::kList, std::move(node));
}

Value Value::dict(std::vector<std::pair<Value, Value>>&& entries) {
  auto node = std::make_shared<DictNode>();
  node->charge(entries.size() * 2 * sizeof(Value) + sizeof(DictNode));
  for (auto& [key, value] : entries) {
    check(!key.is_dict() && !(key.is_list() && key.list_kind() == ListKind::kList),
          "chat template: unhashable type: '{}'", type_name(key));
    node->depth = std::max({node->depth, depth_of(value) + 1, depth_of(key) + 1});
    charge_steps(1);
    if (const Value* known = node->find(key)) {
      const_cast<Value&>(*known) = std::move(value);
      continue;
    }
    node->entries.emplace_back(std::move(key), std::move(value));
    size_t count = node->entries.size();
    if (count < kIndexFrom) continue;
    for (size_t i = count == kIndexFrom ? 0 : count - 1; i < count; ++i) {
      const Value& k = node->entries[i].first;
      if (k.is_string()) node->index.emplace(k.str(), i);
    }
  }
  checked_depth(node->depth);
  return of(Kind::kDict, std::move(node));
}

Value Value::callable(std::string name, std::function<Value(Interpreter&, CallArgs&)> f) {
  auto node = std::make_shared<CallableNode>();
  node->name = std::move(name);
  node->call = std::move(f);
  return of(Kind::kCallable, std::move(node));
}

Value Value::undefined(std::string message, bool unsafe) {
  auto node = std::make_shared<StringNode>();
  node->text = std::move(message);
  node->markup = unsafe;
  return of(Kind::kUndefined, std::move(node));
}

Value Value::from_json(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return integer(json.get<int64_t>());
    case Json::value_t::number_unsigned:
      return integer(static_cast<Int>(json.get<uint64_t>()));
    case Json::value_t::number_float:
      return real(json.get<double>());
    case Json::value_t::string:
      return string(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(from_json(item));
      return list(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> entries;
      entries.reserve(json.size());
      for (const auto& [key, value] : json.items())
        entries.emplace_back(string(key), from_json(value));
      return dict(std::move(entries));
    }
    default:
      return none();
  }
}

const Value* DictNode::find(std::string_view key) const {
  if (entries.size() >= kIndexFrom) {
    auto it = index.find(key);
    return it == index.end() ? nullptr : &entries[it->second].second;
  }
  for (const auto& [k, v] : entries) {
    if (k.is_string() && k.str() == key) return &v;
  }
  return nullptr;
}
const Value* DictNode::find(const Value& key) const {
  if (key.is_string()) return find(std::string_view(key.str()));
  charge_steps(static_cast<int64_t>(entries.size() / 4));
  for (const auto& [k, v] : entries) {
    if (!k.is_string() && equal(k, key)) return &v;
  }
  return nullptr;
}

const Value* NamespaceNode::find(std::string_view name) const {
  for (const auto& [k, v] : attributes) {
    if (k == name) return &v;
  }
  return nullptr;
}
void NamespaceNode::set(const std::string& name, Value value) {
  depth = checked_depth(std::max(depth, depth_of(value) + 1));
  for (auto& [k, v] : attributes) {
    if (k == name) {
      v = std::move(value);
      return;
    }
  }
  charge(sizeof(Value) + name.size() + 32);
  charge_steps(static_cast<int64_t>(attributes.size() / 8));
  attributes.emplace_back(name, std::move(value));
}

void fail_undefined(const Value& v) {
  if (v.identity() == nullptr) fail("chat template: a value is undefined");
  fail("chat template: {}", v.node<StringNode>().text);
}

bool truthy(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return v.as_int() != 0;
    case Kind::kFloat:
      return v.as_float() != 0;
    case Kind::kString:
      return !v.str().empty();
    case Kind::kList:
      return v.list_kind() == ListKind::kGenerator || !v.items().empty();
    case Kind::kDict:
      return !v.dict().entries.empty();
    default:
      return true;
  }
}

static bool same_list_type(ListKind a, ListKind b) {
  auto fold = [](ListKind k) { return k == ListKind::kGroup ? ListKind::kTuple : k; };
  return fold(a) == fold(b);
}

bool equal(const Value& a, const Value& b) {
  charge_steps(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() == b.as_int();
    return a.number() == b.number();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.str() == b.str();
    case Kind::kList: {
      if (a.identity() == b.identity()) return true;
      if (!same_list_type(a.list_kind(), b.list_kind()) || a.list_kind() == ListKind::kGenerator ||
          a.items().size() != b.items().size()) {
        return false;
      }
      return std::equal(a.items().begin(), a.items().end(), b.items().begin(), equal);
    }
    case Kind::kDict: {
      const auto& x = a.dict();
      const auto& y = b.dict();
      if (x.entries.size() != y.entries.size()) return false;
      return std::all_of(x.entries.begin(), x.entries.end(), [&](const auto& entry) {
        const Value* other = y.find(entry.first);
        return other != nullptr && equal(entry.second, *other);
      });
    }
    default:
      return a.identity() == b.identity();
  }
}

bool less(const Value& a, const Value& b) {
  charge_steps(1);
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() < b.as_int();
    return a.number() < b.number();
  }
  if (a.is_string() && b.is_string()) return a.str() < b.str();
  if (a.is_list() && b.is_list() && same_list_type(a.list_kind(), b.list_kind()) &&
      a.list_kind() <= ListKind::kGroup) {
    const auto& x = a.items();
    const auto& y = b.items();
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(x[i], y[i])) return less(x[i], y[i]);
    }
    return x.size() < y.size();
  }
  fail("chat template: '<' is not supported between '{}' and '{}'", type_name(a), type_name(b));
}

const char* type_name(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return v.is_markup() ? "Markup" : "str";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kCallable:
      return "function";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kList:
      break;
  }
  switch (v.list_kind()) {
    case ListKind::kTuple:
    case ListKind::kGroup:
      return "tuple";
    case ListKind::kGenerator:
      return "generator";
    case ListKind::kRange:
      return "range";
    case ListKind::kKeys:
      return "dict_keys";
    case ListKind::kValues:
      return "dict_values";
    case ListKind::kItems:
      return "dict_items";
    default:
      return "list";
  }
}

std::string int_str(Int i) {
  if (i >= INT64_MIN && i <= INT64_MAX) return std::to_string(static_cast<int64_t>(i));
  bool negative = i < 0;
  std::string digits;
  for (; i != 0; i /= 10) digits += static_cast<char>('0' + std::abs(static_cast<int>(i % 10)));
  if (negative) digits += '-';
  return {digits.rbegin(), digits.rend()};
}

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  std::string text(buffer, end);
  size_t e = text.find('e');
  int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed).ptr;
  text.assign(buffer, end);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

static void append_string_repr(std::string& out, std::string_view s) {
  char quote =
      s.find('\'') != std::string_view::npos && s.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  for (size_t pos = 0; pos < s.size();) {
    char32_t c = next_codepoint(s, pos);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out += quote;
}

static void append_repr(std::string& out, const Value& v) {
  charge_steps(1);
  check_string_size(out.size());
  auto join = [&](const char* open, const char* close) {
    out += open;
    bool first = true;
    for (const Value& item : v.items()) {
      if (!first) out += ", ";
      first = false;
      append_repr(out, item);
    }
    out += close;
  };
  switch (v.kind()) {
    case Kind::kUndefined:
      out += "Undefined";
      return;
    case Kind::kString:
      if (v.is_markup()) out += "Markup(";
      append_string_repr(out, v.str());
      if (v.is_markup()) out += ')';
      return;
    case Kind::kList:
      switch (v.list_kind()) {
        case ListKind::kList:
          return join("[", "]");
        case ListKind::kTuple:
        case ListKind::kGroup:
          return join("(", v.items().size() == 1 ? ",)" : ")");
        case ListKind::kKeys:
          return join("dict_keys([", "])");
        case ListKind::kValues:
          return join("dict_values([", "])");
        case ListKind::kItems:
          return join("dict_items([", "])");
        case ListKind::kRange: {
          const auto& range = v.node<ListNode>();
          out += "range(" + int_str(range.start) + ", " + int_str(range.stop);
          if (range.step != 1) out += ", " + int_str(range.step);
          out += ')';
          return;
        }
        case ListKind::kGenerator:
          out += "<generator object>";
          return;
      }
      return;
    case Kind::kDict: {
      out += '{';
      bool first = true;
      for (const auto& [key, value] : v.dict().entries) {
        if (!first) out += ", ";
        first = false;
        append_repr(out, key);
        out += ": ";
        append_repr(out, value);
      }
      out += '}';
      return;
    }
    case Kind::kNamespace: {
      out += "<Namespace {";
      bool first = true;
      for (const auto& [key, value] : v.node<NamespaceNode>().attributes) {
        if (!first) out += ", ";
        first = false;
        append_string_repr(out, key);
        out += ": ";
        append_repr(out, value);
      }
      out += "}>";
      return;
    }
    default:
      out += to_str(v);
  }
}

std::string to_repr(const Value& v) {
  std::string out;
  append_repr(out, v);
  return out;
}

std::string to_str(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
      return "";
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return v.as_bool() ? "True" : "False";
    case Kind::kInt:
      return int_str(v.as_int());
    case Kind::kFloat:
      return float_repr(v.as_float());
    case Kind::kString:
      return v.str();
    case Kind::kCallable:
      return "<function " + v.node<CallableNode>().name + ">";
    case Kind::kLoop:
      return "<LoopContext>";
    default:
      return to_repr(v);
  }
}

size_t length_of(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      charge_steps(static_cast<int64_t>(v.str().size() / 1024));
      return codepoint_count(v.str());
    case Kind::kList:
      if (v.list_kind() != ListKind::kGenerator) return v.items().size();
      break;
    case Kind::kDict:
      return v.dict().entries.size();
    default:
      break;
  }
  fail("chat template: object of type '{}' has no len()", type_name(v));
}

std::vector<Value> iterate(const Value& v) {
  std::vector<Value> out;
  switch (v.kind()) {
    case Kind::kUndefined:
      if (v.identity() != nullptr && v.node<StringNode>().markup) fail_undefined(v);
      return out;
    case Kind::kString: {
      const std::string& s = v.str();
      if (Budget* b = current_budget()) {
        check(s.size() <= b->max_items, "chat template: iterating over a string of {} bytes",
              s.size());
      }
      for (size_t pos = 0; pos < s.size();) {
        size_t begin = pos;
        next_codepoint(s, pos);
        out.push_back(Value::string(s.substr(begin, pos - begin)));
      }
      return out;
    }
    case Kind::kList: {
      auto& node = v.node<ListNode>();
      charge_steps(static_cast<int64_t>(node.items.size() / 16));
      if (node.kind != ListKind::kGenerator) return node.items;
      if (node.consumed) return out;
      node.consumed = true;
      return std::move(node.items);
    }
    case Kind::kDict:
      for (const auto& entry : v.dict().entries) out.push_back(entry.first);
      return out;
    default:
      fail("chat template: '{}' object is not iterable", type_name(v));
  }
}

bool contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString:
      check(item.is_string(),
            "chat template: 'in <string>' requires string as left operand, not {}",
            type_name(item));
      charge_steps(static_cast<int64_t>(container.str().size() / 256));
      return container.str().find(item.str()) != std::string::npos;
    case Kind::kDict:
      return container.dict().find(item) != nullptr;
    case Kind::kList:
      if (container.list_kind() != ListKind::kGenerator) {
        return std::any_of(container.items().begin(), container.items().end(),
                           [&](const Value& v) { return equal(v, item); });
      }
      break;
    case Kind::kUndefined:
      break;
    default:
      fail("chat template: argument of type '{}' is not iterable", type_name(container));
  }
  std::vector<Value> items = iterate(container);
  return std::any_of(items.begin(), items.end(), [&](const Value& v) { return equal(v, item); });
}

}  // namespace reft::jinja
