// Walks a parsed template. One interpreter renders once, on one thread, within a budget.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"

namespace reft::jinja {

// The error of raise_exception(): its message is the template author's.
class RaisedError : public Error {
 public:
  using Error::Error;
};

struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<int, Value>> variables;
  const Value* find(int name) const;
  void set(int name, Value value);
};

// `loop`: the state of a running for statement.
struct LoopNode : Node {
  std::vector<Value> items;
  size_t index = 0;
  int depth = 0;
  const Stmt* statement = nullptr;
  std::weak_ptr<Scope> scope;  // around the loop; gone when the loop object outlives it
  bool has_last_changed = false;
  std::vector<Value> last_changed;
};

// Reads the arguments of a builtin by position or name, as Python binds them.
class ArgReader {
 public:
  ArgReader(std::string_view what, CallArgs& args) : what_(what), args_(args) {}
  // The next parameter; `fallback` when it was not given.
  Value get(std::string_view name, Value fallback);
  Value require(std::string_view name);
  std::string get_string(std::string_view name, std::string fallback);
  int64_t get_int(std::string_view name, int64_t fallback);
  bool get_bool(std::string_view name, bool fallback) {
    return truthy(get(name, Value::boolean(fallback)));
  }
  // Throws when arguments are left over.
  void done() const;

 private:
  const Value* next(std::string_view name);
  std::string_view what_;
  CallArgs& args_;
  size_t position_ = 0;
  size_t named_used_ = 0;
};

class Interpreter {
 public:
  Interpreter(std::shared_ptr<const Program> program, Budget& budget);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // A variable of the template; hides a builtin of the same name.
  void define(std::string_view name, Value value);
  std::string render();
  // What generation blocks wrote, as [begin, end) of the rendered text, in order.
  const std::vector<std::pair<size_t, size_t>>& generated() const { return generated_; }

  Value call(const Value& callee, CallArgs& args);
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& key);
  // "a.b.0" as the `attribute` parameter of filters; `fallback` (unless none) stands for what is
  // undefined.
  Value path(const Value& object, const Value& path, const Value& fallback = Value::none());
  Value filter(const std::string& name, const Value& input, CallArgs& args);
  bool test(const std::string& name, const Value& input, CallArgs& args);
  Value binary(Op op, const Value& a, const Value& b);
  Budget& budget() { return budget_; }

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };

  Value eval(const Expr& e);
  Value eval_name(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_concat(const Expr& e);
  Value eval_call(const Expr& e);
  Value eval_slice(const Expr& e);
  Value eval_filter(const Expr& e, const Value* input);
  CallArgs eval_arguments(const Expr& e, size_t first);

  Flow exec(const Body& body);
  Flow exec(const Stmt& s);
  Flow exec_for(const Stmt& s);
  Flow exec_if(const Stmt& s);
  Flow exec_scope(const Stmt& s);
  Flow run_loop(const Stmt& s, std::vector<Value> items, int depth);
  std::vector<Value> filter_items(const Stmt& s, std::vector<Value> items);
  void exec_call_block(const Stmt& s);
  // Runs `body` in a new scope and returns what it prints.
  std::string capture(const Body& body, std::shared_ptr<Scope> scope);
  void assign(const Target& target, const Value& value);
  Value make_macro(const Stmt& s, size_t num_defaults);
  Value call_macro(const Stmt& s, size_t num_defaults, const std::shared_ptr<Scope>& scope,
                   CallArgs& args);
  Value loop_attribute(const Value& loop, const std::string& name);
  void emit(std::string_view text);
  int find_name(std::string_view name) const;

  std::shared_ptr<const Program> program_;
  Budget& budget_;
  std::vector<Value> globals_;  // by interned name
  std::vector<bool> has_global_;
  std::shared_ptr<Scope> scope_;
  std::string root_;  // the rendered text
  std::string* out_ = nullptr;
  std::vector<std::pair<size_t, size_t>> generated_;
  uint32_t position_ = 0;
  int loop_name_ = -1, caller_name_ = -1, varargs_name_ = -1, kwargs_name_ = -1;
  int call_depth_ = 0;
};

// Null when there is none of that name.
FilterFunction find_filter(std::string_view name);
TestFunction find_test(std::string_view name);
// The globals of chat templates; returns false for an unknown name.
bool find_global(std::string_view name, Value& out);

// Methods of str, list, tuple and dict that the sandbox allows.
bool has_method(const Value& object, std::string_view name);
// Those of Python that change the object: using one is an error.
bool is_mutator(const Value& object, std::string_view name);
Value call_method(Interpreter& interpreter, const Value& object, const std::string& name,
                  CallArgs& args);

// "%s %d" % args; `mapping` serves %(name)s.
std::string percent_format(const std::string& format, const std::vector<Value>& args,
                           const Value* mapping);
// str.format.
std::string brace_format(Interpreter& interpreter, const std::string& format, CallArgs& args);
// Index in C++ terms for Python's `index` of a sequence of `size`; false when out of range.
bool resolve_index(Int index, size_t size, size_t& out);

}  // namespace reft::jinja
