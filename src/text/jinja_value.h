// The values of the template language: Python's scalars, strings, lists, tuples, dicts, and the
// objects that a template can make (namespaces, macros, loops). Copies share; containers never
// change after they were built, except namespaces. A value belongs to the thread that renders;
// literals of a compiled template are shared read-only.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/json.h"

namespace reft::jinja {

__extension__ typedef __int128 Int;  // JSON Schema bounds of u64 fields do not fit 64 signed bits

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kDict,
  kNamespace,
  kCallable,
  kLoop
};

// Which Python type a list stands for. Generators can be read once and have no length.
enum class ListKind : uint8_t { kList, kTuple, kGroup, kGenerator, kRange, kKeys, kValues, kItems };

class Interpreter;
class Value;
struct StringNode;
struct ListNode;
struct DictNode;
struct NamespaceNode;
struct CallableNode;
struct LoopNode;

struct CallArgs {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Node {
  virtual ~Node() = default;
};

class Value {
 public:
  Value() = default;  // undefined
  static Value none() { return Value(Kind::kNone); }
  static Value boolean(bool b) {
    Value v(Kind::kBool);
    v.int_ = b ? 1 : 0;
    return v;
  }
  static Value integer(Int i) {
    Value v(Kind::kInt);
    v.int_ = i;
    return v;
  }
  static Value real(double d) {
    Value v(Kind::kFloat);
    v.float_ = d;
    return v;
  }
  static Value string(std::string s, bool markup = false);
  static Value list(std::vector<Value> items, ListKind kind = ListKind::kList);
  static Value tuple(std::vector<Value> items) { return list(std::move(items), ListKind::kTuple); }
  static Value dict(std::vector<std::pair<Value, Value>>&& entries);
  static Value callable(std::string name, std::function<Value(Interpreter&, CallArgs&)> f);
  // `message`: what an error about its use says. `unsafe`: made by an access that the sandbox
  // forbids.
  static Value undefined(std::string message, bool unsafe = false);
  static Value of(Kind kind, std::shared_ptr<Node> node) {
    Value v(kind);
    v.node_ = std::move(node);
    return v;
  }
  static Value from_json(const Json& json);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_list() const { return kind_ == Kind::kList; }
  bool is_dict() const { return kind_ == Kind::kDict; }
  bool is_integral() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool is_number() const { return is_integral() || kind_ == Kind::kFloat; }

  // Accessors: the kind must match.
  bool as_bool() const { return int_ != 0; }
  Int as_int() const { return int_; }
  double as_float() const { return float_; }
  double number() const { return kind_ == Kind::kFloat ? float_ : static_cast<double>(int_); }
  const std::string& str() const;
  bool is_markup() const;
  const std::vector<Value>& items() const;
  ListKind list_kind() const;
  const DictNode& dict() const;
  template <class T>
  T& node() const {
    return static_cast<T&>(*node_);
  }
  const Node* identity() const { return node_.get(); }

 private:
  explicit Value(Kind kind) : kind_(kind) {}
  Kind kind_ = Kind::kUndefined;
  union {
    Int int_ = 0;
    double float_;
  };
  std::shared_ptr<Node> node_;
};

// What a render may use. The render's thread has a current budget; nodes charge it while they live.
struct Budget {
  size_t live_bytes = 0;
  size_t max_live_bytes = 0;
  size_t max_string_bytes = 0;
  size_t max_items = 0;
  int64_t steps = 0;
  int64_t max_steps = 0;
  std::chrono::steady_clock::time_point deadline;
  std::chrono::milliseconds max_time{0};
  const char* stack_base = nullptr;
  std::vector<std::shared_ptr<NamespaceNode>>
      namespaces;  // emptied at the end: they may form cycles

  // Throws Error when steps or time are used up, or the native stack is nearly so.
  void tick(int64_t n = 1) {
    steps += n;
    if (steps >= next_check_) slow_check();
    const char* here = static_cast<const char*>(__builtin_frame_address(0));
    if (stack_base - here > kMaxStackBytes) fail("chat template: recursion is too deep");
  }
  void check_string(size_t bytes) const {
    check(bytes <= max_string_bytes, "chat template: a string grows over {} bytes",
          max_string_bytes);
  }

 private:
  static constexpr std::ptrdiff_t kMaxStackBytes = 2 << 20;
  int64_t next_check_ = 0;
  void slow_check();
};

// The budget of the render that runs on this thread, or null (while a template is compiled).
Budget* current_budget();
class BudgetScope {
 public:
  explicit BudgetScope(Budget* budget);
  ~BudgetScope();
  BudgetScope(const BudgetScope&) = delete;
  BudgetScope& operator=(const BudgetScope&) = delete;

 private:
  Budget* previous_;
};

// Checks before a string of `bytes` is built from parts.
void check_string_size(size_t bytes);
void charge_steps(int64_t n);

struct ChargedNode : Node {
  void charge(size_t bytes);
  ~ChargedNode() override;

 private:
  Budget* budget_ = nullptr;
  size_t bytes_ = 0;
};

struct StringNode : ChargedNode {
  std::string text;
  bool markup = false;  // an undefined value's node: made by a forbidden access
};

struct ListNode : ChargedNode {
  std::vector<Value> items;
  ListKind kind = ListKind::kList;
  bool consumed = false;  // generators
  int depth = 1;
  Int start = 0, stop = 0, step = 1;  // ranges
};

struct DictNode : ChargedNode {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_map<std::string_view, size_t> index;  // of string keys, when there are many
  int depth = 1;
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
};

struct NamespaceNode : ChargedNode {
  std::vector<std::pair<std::string, Value>> attributes;
  int depth = 1;
  const Value* find(std::string_view name) const;
  void set(const std::string& name, Value value);
};

struct CallableNode : Node {
  std::string name;
  std::function<Value(Interpreter&, CallArgs&)> call;
  std::function<Value(const std::string&)> attribute;  // may be empty
};

inline const std::string& Value::str() const { return node<StringNode>().text; }
inline bool Value::is_markup() const { return is_string() && node<StringNode>().markup; }
inline const std::vector<Value>& Value::items() const { return node<ListNode>().items; }
inline ListKind Value::list_kind() const { return node<ListNode>().kind; }
inline const DictNode& Value::dict() const { return node<DictNode>(); }

// Python's semantics.
bool truthy(const Value& v);
bool equal(const Value& a, const Value& b);
// a < b; throws Error for types without an order.
bool less(const Value& a, const Value& b);
std::string to_str(const Value& v);   // str(v): '' for undefined
std::string to_repr(const Value& v);  // repr(v)
std::string float_repr(double d);
std::string int_str(Int i);
const char* type_name(const Value& v);
// len(v); throws for values without one.
size_t length_of(const Value& v);
// The items that iterating yields (dict keys, characters); uses up generators. Throws for what
// cannot be iterated.
std::vector<Value> iterate(const Value& v);
bool contains(const Value& container, const Value& item);
// Throws the error that using an undefined value gives.
[[noreturn]] void fail_undefined(const Value& v);

struct DumpOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool pretty = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps.
std::string dump_json(const Value& v, const DumpOptions& options);

}  // namespace reft::jinja
