// json.dumps, as transformers' tojson filter calls it.
#include <algorithm>
#include <cmath>

#include "base/json_text.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

namespace reft::jinja {
namespace {

std::string json_float(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
  return float_repr(d);
}

class Dumper {
 public:
  Dumper(std::string& out, const DumpOptions& options) : out_(out), options_(options) {}

  void dump(const Value& v, int level) {
    charge_steps(1);
    check_string_size(out_.size());
    switch (v.kind()) {
      case Kind::kNone:
        out_ += "null";
        return;
      case Kind::kBool:
        out_ += v.as_bool() ? "true" : "false";
        return;
      case Kind::kInt:
        out_ += int_str(v.as_int());
        return;
      case Kind::kFloat:
        out_ += json_float(v.as_float());
        return;
      case Kind::kString:
        append_json_string(out_, v.str(), options_.ensure_ascii);
        return;
      case Kind::kList:
        if (v.list_kind() <= ListKind::kGroup) return dump_list(v.items(), level);
        break;
      case Kind::kDict:
        return dump_dict(v.dict().entries, level);
      default:
        break;
    }
    fail("chat template: object of type {} is not JSON serializable", type_name(v));
  }

 private:
  void new_line(int level) {
    if (!options_.pretty) return;
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += options_.indent;
    check_string_size(out_.size());
  }

  void dump_list(const std::vector<Value>& items, int level) {
    if (items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_ += options_.item_separator;
      new_line(level + 1);
      dump(items[i], level + 1);
    }
    new_line(level);
    out_ += ']';
  }

  void dump_key(const Value& key) {
    if (key.is_string()) return append_json_string(out_, key.str(), options_.ensure_ascii);
    check(key.is_number() || key.is_none(),
          "chat template: JSON keys must be str, int, float, bool or None, not {}", type_name(key));
    out_ += '"';
    dump(key, 0);
    out_ += '"';
  }

  void dump_dict(const std::vector<std::pair<Value, Value>>& entries, int level) {
    if (entries.empty()) {
      out_ += "{}";
      return;
    }
    std::vector<const std::pair<Value, Value>*> order;
    for (const auto& entry : entries) order.push_back(&entry);
    if (options_.sort_keys) {
      std::stable_sort(order.begin(), order.end(),
                       [](auto* a, auto* b) { return less(a->first, b->first); });
    }
    out_ += '{';
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0) out_ += options_.item_separator;
      new_line(level + 1);
      dump_key(order[i]->first);
      out_ += options_.key_separator;
      dump(order[i]->second, level + 1);
    }
    new_line(level);
    out_ += '}';
  }

  std::string& out_;
  const DumpOptions& options_;
};

}  // namespace

std::string dump_json(const Value& v, const DumpOptions& options) {
  std::string out;
  Dumper(out, options).dump(v, 0);
  return out;
}

}  // namespace reft::jinja
