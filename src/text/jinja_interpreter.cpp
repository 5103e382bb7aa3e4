#include "text/jinja_interpreter.h"

#include <algorithm>

#include "text/jinja_lexer.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

constexpr int kMaxCallDepth = 200;
constexpr std::string_view kErrorPrefix = "chat template: ";

Value undefined_attribute(const Value& object, std::string_view name) {
  return Value::undefined(
      fmt::format("'{}' has no attribute '{}'",
                  object.is_none() ? "None" : std::string(type_name(object)) + " object", name));
}

}  // namespace

const Value* Scope::find(int name) const {
  for (const auto& [n, v] : variables) {
    if (n == name) return &v;
  }
  return nullptr;
}
void Scope::set(int name, Value value) {
  for (auto& [n, v] : variables) {
    if (n == name) {
      v = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

bool resolve_index(Int index, size_t size, size_t& out) {
  if (index < 0) index += static_cast<Int>(size);
  if (index < 0 || index >= static_cast<Int>(size)) return false;
  out = static_cast<size_t>(index);
  return true;
}

// ---- arguments

const Value* ArgReader::next(std::string_view name) {
  size_t i = position_++;
  if (i < args_.positional.size()) return &args_.positional[i];
  for (auto& [n, v] : args_.named) {
    if (n == name) {
      ++named_used_;
      return &v;
    }
  }
  return nullptr;
}
Value ArgReader::get(std::string_view name, Value fallback) {
  const Value* v = next(name);
  if (v != nullptr) return *v;
  return fallback;
}
Value ArgReader::require(std::string_view name) {
  const Value* v = next(name);
  check(v != nullptr, "chat template: {}: missing argument '{}'", what_, name);
  return *v;
}
std::string ArgReader::get_string(std::string_view name, std::string fallback) {
  const Value* v = next(name);
  return v != nullptr ? to_str(*v) : std::move(fallback);
}
int64_t ArgReader::get_int(std::string_view name, int64_t fallback) {
  const Value* v = next(name);
  if (v == nullptr) return fallback;
  if (v->is_undefined()) fail_undefined(*v);
  check(v->is_integral(), "chat template: {}: '{}' must be an integer, not {}", what_, name,
        type_name(*v));
  check(v->as_int() >= INT64_MIN / 2 && v->as_int() <= INT64_MAX / 2,
        "chat template: {}: '{}' is too large", what_, name);
  return static_cast<int64_t>(v->as_int());
}
void ArgReader::done() const {
  check(args_.positional.size() <= position_ && named_used_ == args_.named.size(),
        "chat template: {}: unexpected argument{}", what_,
        args_.named.empty() ? "" : " '" + args_.named[0].first + "'");
}

// ---- set-up

Interpreter::Interpreter(std::shared_ptr<const Program> program, Budget& budget)
    : program_(std::move(program)), budget_(budget), scope_(std::make_shared<Scope>()) {
  size_t count = program_->names.size();
  globals_.resize(count);
  has_global_.resize(count);
  for (size_t i = 0; i < count; ++i) has_global_[i] = find_global(program_->names[i], globals_[i]);
  loop_name_ = find_name("loop");
  caller_name_ = find_name("caller");
  varargs_name_ = find_name("varargs");
  kwargs_name_ = find_name("kwargs");
}

Interpreter::~Interpreter() {
  // Namespaces may hold each other, so they would never die by themselves.
  for (auto& ns : budget_.namespaces) ns->attributes.clear();
  budget_.namespaces.clear();
}

int Interpreter::find_name(std::string_view name) const {
  auto it = std::find(program_->names.begin(), program_->names.end(), name);
  return it == program_->names.end() ? -1 : static_cast<int>(it - program_->names.begin());
}

void Interpreter::define(std::string_view name, Value value) {
  int id = find_name(name);
  if (id < 0) return;
  globals_[static_cast<size_t>(id)] = std::move(value);
  has_global_[static_cast<size_t>(id)] = true;
}

std::string Interpreter::render() {
  root_.clear();
  generated_.clear();
  out_ = &root_;
  try {
    exec(program_->body);
  } catch (const RaisedError&) {
    throw;
  } catch (const Error& e) {
    std::string_view message = e.what();
    if (message.substr(0, kErrorPrefix.size()) == kErrorPrefix)
      message.remove_prefix(kErrorPrefix.size());
    fail("chat template: {}: {}", describe_position(program_->source, position_), message);
  }
  return std::move(root_);
}

void Interpreter::emit(std::string_view text) {
  budget_.check_string(out_->size() + text.size());
  out_->append(text);
}

// ---- expressions

Value Interpreter::eval(const Expr& e) {
  budget_.tick();
  switch (e.kind) {
    case ExprKind::kConst:
      return e.value;
    case ExprKind::kName:
      return eval_name(e);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      std::vector<Value> items;
      items.reserve(e.items.size());
      for (const ExprPtr& item : e.items) items.push_back(eval(*item));
      return Value::list(std::move(items),
                         e.kind == ExprKind::kList ? ListKind::kList : ListKind::kTuple);
    }
    case ExprKind::kDict: {
      std::vector<std::pair<Value, Value>> entries;
      for (size_t i = 0; i < e.items.size(); i += 2) {
        Value key = eval(*e.items[i]);
        entries.emplace_back(std::move(key), eval(*e.items[i + 1]));
      }
      return Value::dict(std::move(entries));
    }
    case ExprKind::kNegate:
    case ExprKind::kPlus: {
      Value v = eval(*e.items[0]);
      if (v.is_undefined()) fail_undefined(v);
      check(v.is_number(), "chat template: bad operand type for unary {}: '{}'",
            e.kind == ExprKind::kNegate ? "-" : "+", type_name(v));
      if (v.is(Kind::kFloat)) return e.kind == ExprKind::kNegate ? Value::real(-v.as_float()) : v;
      return e.kind == ExprKind::kNegate ? binary(Op::kSub, Value::integer(0), v)
                                         : Value::integer(v.as_int());
    }
    case ExprKind::kNot:
      return Value::boolean(!truthy(eval(*e.items[0])));
    case ExprKind::kAnd: {
      Value v = eval(*e.items[0]);
      return truthy(v) ? eval(*e.items[1]) : v;
    }
    case ExprKind::kOr: {
      Value v = eval(*e.items[0]);
      return truthy(v) ? v : eval(*e.items[1]);
    }
    case ExprKind::kBinary: {
      Value a = eval(*e.items[0]);
      return binary(e.op, a, eval(*e.items[1]));
    }
    case ExprKind::kCompare:
      return eval_compare(e);
    case ExprKind::kConcat:
      return eval_concat(e);
    case ExprKind::kConditional:
      if (truthy(eval(*e.items[0]))) return eval(*e.items[1]);
      if (e.items[2] != nullptr) return eval(*e.items[2]);
      return Value::undefined(
          "the inline if-expression evaluated to false and no else section was defined.");
    case ExprKind::kAttribute:
      return attribute(eval(*e.items[0]), e.text);
    case ExprKind::kItem: {
      Value object = eval(*e.items[0]);
      return item(object, eval(*e.items[1]));
    }
    case ExprKind::kSlice:
      return eval_slice(e);
    case ExprKind::kCall:
      return eval_call(e);
    case ExprKind::kFilter:
      return eval_filter(e, nullptr);
    case ExprKind::kTest: {
      Value v = eval(*e.items[0]);
      CallArgs args = eval_arguments(e, 1);
      check(e.test != nullptr, "chat template: no test named '{}'", e.text);
      return Value::boolean(e.test(*this, v, args));
    }
  }
  return {};
}

Value Interpreter::eval_name(const Expr& e) {
  for (const Scope* s = scope_.get(); s != nullptr; s = s->parent.get()) {
    if (const Value* v = s->find(e.name)) return *v;
  }
  auto id = static_cast<size_t>(e.name);
  if (has_global_[id]) return globals_[id];
  return Value::undefined("'" + e.text + "' is undefined");
}

Value Interpreter::eval_compare(const Expr& e) {
  Value left = eval(*e.items[0]);
  for (size_t i = 0; i < e.ops.size(); ++i) {
    Value right = eval(*e.items[i + 1]);
    bool ok = false;
    switch (e.ops[i]) {
      case Op::kEq:
        ok = equal(left, right);
        break;
      case Op::kNe:
        ok = !equal(left, right);
        break;
      case Op::kLt:
        ok = less(left, right);
        break;
      case Op::kGt:
        ok = less(right, left);
        break;
      case Op::kLe:
        ok = less(left, right) || equal(left, right);
        break;
      case Op::kGe:
        ok = less(right, left) || equal(left, right);
        break;
      case Op::kIn:
        ok = contains(right, left);
        break;
      default:
        ok = !contains(right, left);
    }
    if (!ok) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_concat(const Expr& e) {
  std::string out;
  for (const ExprPtr& part : e.items) {
    Value v = eval(*part);
    if (v.is_string()) {
      check_string_size(out.size() + v.str().size());
      out += v.str();
    } else {
      out += to_str(v);
    }
  }
  return Value::string(std::move(out));
}

CallArgs Interpreter::eval_arguments(const Expr& e, size_t first) {
  CallArgs args;
  for (size_t i = first; i < e.items.size(); ++i) args.positional.push_back(eval(*e.items[i]));
  if (e.star != nullptr) {
    for (Value& v : iterate(eval(*e.star))) args.positional.push_back(std::move(v));
  }
  for (const auto& [name, value] : e.named) {
    for (const auto& known : args.named)
      check(known.first != name, "chat template: keyword argument repeated: {}", name);
    args.named.emplace_back(name, eval(*value));
  }
  if (e.star_star != nullptr) {
    Value mapping = eval(*e.star_star);
    check(mapping.is_dict(), "chat template: argument after ** must be a mapping, not {}",
          type_name(mapping));
    for (const auto& [key, value] : mapping.dict().entries) {
      check(key.is_string(), "chat template: keywords must be strings");
      for (const auto& known : args.named) {
        check(known.first != key.str(),
              "chat template: got multiple values for keyword argument '{}'", key.str());
      }
      budget_.tick(static_cast<int64_t>(args.named.size() / 8));
      args.named.emplace_back(key.str(), value);
    }
  }
  return args;
}

Value Interpreter::eval_call(const Expr& e) {
  const Expr& callee = *e.items[0];
  if (callee.kind == ExprKind::kAttribute) {
    Value object = eval(*callee.items[0]);
    if (has_method(object, callee.text)) {
      CallArgs args = eval_arguments(e, 1);
      return call_method(*this, object, callee.text, args);
    }
    Value f = attribute(object, callee.text);
    CallArgs args = eval_arguments(e, 1);
    return call(f, args);
  }
  Value f = eval(callee);
  CallArgs args = eval_arguments(e, 1);
  return call(f, args);
}

Value Interpreter::call(const Value& callee, CallArgs& args) {
  budget_.tick();
  if (callee.is_undefined()) fail_undefined(callee);
  check(++call_depth_ <= kMaxCallDepth, "chat template: calls are nested deeper than {}",
        kMaxCallDepth);
  struct Leave {
    int& depth;
    ~Leave() { --depth; }
  } leave{call_depth_};
  if (callee.is(Kind::kLoop)) {
    auto& loop = callee.node<LoopNode>();
    check(loop.statement->recursive,
          "chat template: the loop must have the 'recursive' marker to be called");
    ArgReader reader("loop()", args);
    Value iterable = reader.require("iterable");
    reader.done();
    std::shared_ptr<Scope> scope = loop.scope.lock();
    check(scope != nullptr, "chat template: a loop was called after its end");
    std::string text;
    std::string* out = std::exchange(out_, &text);
    std::shared_ptr<Scope> saved = std::exchange(scope_, std::move(scope));
    const Stmt& s = *loop.statement;
    run_loop(s, filter_items(s, iterate(iterable)), loop.depth + 1);
    scope_ = std::move(saved);
    out_ = out;
    return Value::string(std::move(text));
  }
  check(callee.is(Kind::kCallable), "chat template: '{}' object is not callable",
        type_name(callee));
  return callee.node<CallableNode>().call(*this, args);
}

Value Interpreter::eval_filter(const Expr& e, const Value* input) {
  Value v = e.items[0] == nullptr ? *input
            : e.items[0]->kind == ExprKind::kFilter && input != nullptr
                ? eval_filter(*e.items[0], input)
                : eval(*e.items[0]);
  CallArgs args = eval_arguments(e, 1);
  check(e.filter != nullptr, "chat template: no filter named '{}'", e.text);
  return e.filter(*this, v, args);
}

Value Interpreter::filter(const std::string& name, const Value& input, CallArgs& args) {
  budget_.tick();
  FilterFunction f = find_filter(name);
  check(f != nullptr, "chat template: no filter named '{}'", name);
  return f(*this, input, args);
}

bool Interpreter::test(const std::string& name, const Value& input, CallArgs& args) {
  budget_.tick();
  TestFunction f = find_test(name);
  check(f != nullptr, "chat template: no test named '{}'", name);
  return f(*this, input, args);
}

// ---- attributes and items

Value Interpreter::attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) fail_undefined(object);
  bool dunder =
      name.size() > 4 && name.rfind("__", 0) == 0 && name.compare(name.size() - 2, 2, "__") == 0;
  if (dunder || is_mutator(object, name)) {
    return Value::undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)),
        true);
  }
  if (has_method(object, name)) {
    return Value::callable(name, [object, name](Interpreter& interpreter, CallArgs& args) {
      return call_method(interpreter, object, name, args);
    });
  }
  const Value* found = nullptr;
  switch (object.kind()) {
    case Kind::kDict:
      found = object.dict().find(std::string_view(name));
      break;
    case Kind::kNamespace:
      found = object.node<NamespaceNode>().find(name);
      break;
    case Kind::kLoop:
      return loop_attribute(object, name);
    case Kind::kCallable:
      if (object.node<CallableNode>().attribute) return object.node<CallableNode>().attribute(name);
      break;
    case Kind::kList:
      if (object.list_kind() == ListKind::kGroup) {
        if (name == "grouper") return object.items()[0];
        if (name == "list") return object.items()[1];
      }
      break;
    default:
      break;
  }
  return found != nullptr ? *found : undefined_attribute(object, name);
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) fail_undefined(object);
  if (object.is_dict()) {
    if (const Value* v = object.dict().find(key)) return *v;
  } else if (key.is_integral()) {
    size_t i = 0;
    if (object.is_list() && object.list_kind() <= ListKind::kRange &&
        object.list_kind() != ListKind::kGenerator) {
      if (resolve_index(key.as_int(), object.items().size(), i)) return object.items()[i];
    } else if (object.is_string()) {
      const std::string& s = object.str();
      budget_.tick(static_cast<int64_t>(s.size() / 1024));
      if (resolve_index(key.as_int(), codepoint_count(s), i)) {
        size_t begin = byte_offset(s, i);
        size_t end = begin;
        next_codepoint(s, end);
        return Value::string(s.substr(begin, end - begin), object.is_markup());
      }
    }
    return Value::undefined(
        fmt::format("'{} object' has no element {}", type_name(object), int_str(key.as_int())));
  }
  if (key.is_string()) {
    if (object.is_dict() && !has_method(object, key.str()) && !is_mutator(object, key.str())) {
      return Value::undefined(fmt::format("'dict object' has no attribute '{}'", key.str()));
    }
    return attribute(object, key.str());
  }
  return Value::undefined(
      fmt::format("'{} object' has no element {}", type_name(object), to_repr(key)));
}

Value Interpreter::path(const Value& object, const Value& path, const Value& fallback) {
  auto step = [&](const Value& v, const Value& key) {
    Value found = item(v, key);
    return found.is_undefined() && !fallback.is_none() ? fallback : found;
  };
  if (path.is_integral()) return step(object, path);
  Value v = object;
  std::string text = to_str(path);
  for (std::string_view part : split(text, ".", -1)) {
    bool digits =
        !part.empty() && part.size() < 10 &&
        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    std::string key(part);
    v = step(v, digits ? Value::integer(std::stoi(key)) : Value::string(key));
  }
  return v;
}

Value Interpreter::loop_attribute(const Value& value, const std::string& name) {
  auto& loop = value.node<LoopNode>();
  auto index = static_cast<Int>(loop.index);
  auto size = static_cast<Int>(loop.items.size());
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(size - index);
  if (name == "revindex0") return Value::integer(size - index - 1);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == size);
  if (name == "length") return Value::integer(size);
  if (name == "depth") return Value::integer(loop.depth + 1);
  if (name == "depth0") return Value::integer(loop.depth);
  if (name == "previtem") {
    return index > 0 ? loop.items[loop.index - 1] : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < size ? loop.items[loop.index + 1]
                            : Value::undefined("there is no next item");
  }
  if (name == "cycle") {
    return Value::callable("cycle", [value](Interpreter&, CallArgs& args) {
      check(!args.positional.empty(), "chat template: no items for cycling given");
      return args.positional[value.node<LoopNode>().index % args.positional.size()];
    });
  }
  if (name == "changed") {
    return Value::callable("changed", [value](Interpreter&, CallArgs& args) {
      auto& node = value.node<LoopNode>();
      auto& last = node.last_changed;
      bool same = node.has_last_changed && last.size() == args.positional.size() &&
                  std::equal(last.begin(), last.end(), args.positional.begin(), equal);
      node.has_last_changed = true;
      last = args.positional;
      return Value::boolean(!same);
    });
  }
  return undefined_attribute(value, name);
}

// ---- statements

Interpreter::Flow Interpreter::exec(const Body& body) {
  for (const auto& s : body) {
    Flow flow = exec(*s);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Stmt& s) {
  budget_.tick();
  position_ = s.position;
  switch (s.kind) {
    case StmtKind::kText:
      emit(s.text);
      break;
    case StmtKind::kOutput: {
      Value v = eval(*s.exprs[0]);
      v.is_string() ? emit(v.str()) : emit(to_str(v));
      break;
    }
    case StmtKind::kFor:
      return exec_for(s);
    case StmtKind::kIf:
      return exec_if(s);
    case StmtKind::kSet:
      assign(s.targets[0], eval(*s.exprs[0]));
      break;
    case StmtKind::kSetBlock: {
      auto scope = std::make_shared<Scope>();
      scope->parent = scope_;
      Value v = Value::string(capture(s.bodies[0], std::move(scope)));
      if (s.exprs[0] != nullptr) v = eval_filter(*s.exprs[0], &v);
      assign(s.targets[0], v);
      break;
    }
    case StmtKind::kMacro:
      scope_->set(s.name, make_macro(s, s.exprs.size()));
      break;
    case StmtKind::kCallBlock:
      exec_call_block(s);
      break;
    case StmtKind::kFilterBlock: {
      auto scope = std::make_shared<Scope>();
      scope->parent = scope_;
      Value v = Value::string(capture(s.bodies[0], std::move(scope)));
      emit(to_str(eval_filter(*s.exprs[0], &v)));
      break;
    }
    case StmtKind::kGeneration: {
      const size_t begin = root_.size();
      const Flow flow = exec_scope(s);
      // Captured text has no place in the result yet.
      if (out_ == &root_) generated_.push_back({begin, root_.size()});
      return flow;
    }
    case StmtKind::kWith:
    case StmtKind::kScope:
      return exec_scope(s);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec_if(const Stmt& s) {
  for (size_t i = 0; i < s.exprs.size(); ++i) {
    if (truthy(eval(*s.exprs[i]))) return exec(s.bodies[i]);
  }
  return s.bodies.size() > s.exprs.size() ? exec(s.bodies.back()) : Flow::kNext;
}

std::vector<Value> Interpreter::filter_items(const Stmt& s, std::vector<Value> items) {
  if (s.exprs[1] == nullptr) return items;
  std::vector<Value> kept;
  for (Value& v : items) {
    auto scope = std::make_shared<Scope>();
    scope->parent = scope_;
    std::shared_ptr<Scope> saved = std::exchange(scope_, std::move(scope));
    assign(s.targets[0], v);
    bool keep = truthy(eval(*s.exprs[1]));
    scope_ = std::move(saved);
    if (keep) kept.push_back(std::move(v));
  }
  return kept;
}

Interpreter::Flow Interpreter::exec_for(const Stmt& s) {
  return run_loop(s, filter_items(s, iterate(eval(*s.exprs[0]))), 0);
}

// Breaks and continues end here.
Interpreter::Flow Interpreter::run_loop(const Stmt& s, std::vector<Value> items, int depth) {
  std::shared_ptr<Scope> outer = scope_;
  auto inner = std::make_shared<Scope>();
  inner->parent = outer;
  if (items.empty()) {
    if (s.bodies.size() < 2) return Flow::kNext;
    scope_ = std::move(inner);
    Flow flow = exec(s.bodies[1]);
    scope_ = std::move(outer);
    return flow;
  }
  auto loop = std::make_shared<LoopNode>();
  loop->items = std::move(items);
  loop->depth = depth;
  loop->statement = &s;
  loop->scope = outer;
  for (; loop->index < loop->items.size(); ++loop->index) {
    budget_.tick();
    if (inner.use_count() > 1) {
      inner = std::make_shared<Scope>();
      inner->parent = outer;
    }
    inner->variables.clear();
    if (loop_name_ >= 0) inner->set(loop_name_, Value::of(Kind::kLoop, loop));
    scope_ = inner;
    assign(s.targets[0], loop->items[loop->index]);
    Flow flow = exec(s.bodies[0]);
    scope_ = outer;
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec_scope(const Stmt& s) {
  auto scope = std::make_shared<Scope>();
  scope->parent = scope_;
  std::vector<Value> values;
  for (const ExprPtr& e : s.exprs) values.push_back(eval(*e));
  std::shared_ptr<Scope> saved = std::exchange(scope_, std::move(scope));
  for (size_t i = 0; i < values.size(); ++i) assign(s.targets[i], values[i]);
  Flow flow = exec(s.bodies[0]);
  scope_ = std::move(saved);
  return flow;
}

std::string Interpreter::capture(const Body& body, std::shared_ptr<Scope> scope) {
  std::string text;
  std::string* out = std::exchange(out_, &text);
  std::shared_ptr<Scope> saved = std::exchange(scope_, std::move(scope));
  exec(body);
  scope_ = std::move(saved);
  out_ = out;
  return text;
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (!target.parts.empty()) {
    std::vector<Value> items = iterate(value);
    check(items.size() == target.parts.size(),
          "chat template: cannot unpack {} values into {} names", items.size(),
          target.parts.size());
    for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i]);
    return;
  }
  if (target.attribute.empty()) {
    scope_->set(target.name, value);
    return;
  }
  Value object;
  for (const Scope* s = scope_.get(); s != nullptr; s = s->parent.get()) {
    if (const Value* v = s->find(target.name)) {
      object = *v;
      break;
    }
  }
  if (object.is_undefined() && has_global_[static_cast<size_t>(target.name)])
    object = globals_[static_cast<size_t>(target.name)];
  check(object.is(Kind::kNamespace),
        "chat template: cannot assign attribute '{}' on '{}': it is not a namespace",
        target.attribute, target.text);
  check(target.attribute[0] != '_',
        "chat template: a namespace attribute must not start with '_': '{}'", target.attribute);
  object.node<NamespaceNode>().set(target.attribute, value);
}

Value Interpreter::make_macro(const Stmt& s, size_t num_defaults) {
  std::weak_ptr<Scope> weak = scope_;
  Value macro =
      Value::callable(s.text, [&s, num_defaults, weak](Interpreter& self, CallArgs& args) {
        std::shared_ptr<Scope> scope = weak.lock();
        check(scope != nullptr,
              "chat template: macro '{}' was called after the block that it belongs to", s.text);
        return self.call_macro(s, num_defaults, scope, args);
      });
  macro.node<CallableNode>().attribute = [&s](const std::string& name) {
    return name == "name" ? Value::string(s.text)
                          : Value::undefined("macro object has no attribute '" + name + "'");
  };
  return macro;
}

Value Interpreter::call_macro(const Stmt& s, size_t num_defaults,
                              const std::shared_ptr<Scope>& scope, CallArgs& args) {
  auto inner = std::make_shared<Scope>();
  inner->parent = scope;
  std::vector<bool> used(args.named.size());
  auto take_named = [&](std::string_view name) -> const Value* {
    for (size_t i = 0; i < args.named.size(); ++i) {
      if (args.named[i].first == name && !used[i]) {
        used[i] = true;
        return &args.named[i].second;
      }
    }
    return nullptr;
  };
  std::shared_ptr<Scope> saved = std::exchange(scope_, inner);
  size_t count = s.parameters.size();
  for (size_t i = 0; i < count; ++i) {
    const std::string& name = s.parameter_names[i];
    if (i < args.positional.size()) {
      inner->set(s.parameters[i], args.positional[i]);
    } else if (const Value* v = take_named(name)) {
      inner->set(s.parameters[i], *v);
    } else if (i >= count - num_defaults) {
      inner->set(s.parameters[i], eval(*s.exprs[i - (count - num_defaults)]));
    } else {
      inner->set(s.parameters[i], Value::undefined("parameter '" + name + "' was not provided"));
    }
  }
  if (s.uses_caller && std::find(s.parameter_names.begin(), s.parameter_names.end(), "caller") ==
                           s.parameter_names.end()) {
    const Value* caller = take_named("caller");
    inner->set(caller_name_, caller != nullptr ? *caller : Value::undefined("No caller defined"));
  }
  std::vector<std::pair<Value, Value>> rest;
  for (size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    check(s.uses_kwargs, "chat template: macro '{}' takes no keyword argument '{}'", s.text,
          args.named[i].first);
    rest.emplace_back(Value::string(args.named[i].first), args.named[i].second);
  }
  if (s.uses_kwargs) inner->set(kwargs_name_, Value::dict(std::move(rest)));
  check(s.uses_varargs || args.positional.size() <= count,
        "chat template: macro '{}' takes not more than {} argument(s)", s.text, count);
  if (s.uses_varargs) {
    std::vector<Value> extra;
    for (size_t i = count; i < args.positional.size(); ++i) extra.push_back(args.positional[i]);
    inner->set(varargs_name_, Value::tuple(std::move(extra)));
  }
  scope_ = std::move(saved);
  uint32_t position = position_;
  std::string text = capture(s.bodies[0], std::move(inner));
  position_ = position;
  return Value::string(std::move(text));
}

void Interpreter::exec_call_block(const Stmt& s) {
  Value caller = make_macro(s, s.exprs.size() - 1);
  const Expr& call_expr = *s.exprs.back();
  Value callee = eval(*call_expr.items[0]);
  CallArgs args = eval_arguments(call_expr, 1);
  args.named.emplace_back("caller", std::move(caller));
  emit(to_str(call(callee, args)));
}

}  // namespace reft::jinja
