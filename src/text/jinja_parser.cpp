#include "text/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "text/jinja_interpreter.h"
#include "text/jinja_lexer.h"

namespace reft::jinja {
namespace {

constexpr size_t kMaxSource = 4 << 20;
constexpr int kMaxExprDepth = 400;
constexpr int kMaxNesting = 150;

class Parser {
 public:
  explicit Parser(std::string_view source) {
    check(source.size() <= kMaxSource, "chat template: the template is longer than {} bytes",
          kMaxSource);
    program_ = std::make_shared<Program>();
    program_->source = normalize_source(source);
    tokens_ = tokenize(program_->source);
  }

  std::shared_ptr<const Program> run() {
    program_->body = parse_body({}, "");
    return program_;
  }

 private:
  // ---- tokens
  const Token& current() const { return tokens_[index_]; }
  const Token& look(size_t ahead = 1) const {
    return tokens_[std::min(index_ + ahead, tokens_.size() - 1)];
  }
  Token take() {
    Token t = tokens_[index_];
    if (index_ + 1 < tokens_.size()) ++index_;
    return t;
  }
  bool is_op(std::string_view op) const {
    return current().kind == TokenKind::kOperator && current().text == op;
  }
  bool is_name(std::string_view name) const {
    return current().kind == TokenKind::kName && current().text == name;
  }
  bool skip_op(std::string_view op) {
    if (!is_op(op)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    take();
    return true;
  }
  [[noreturn]] void error(size_t position, std::string_view message) const {
    fail("chat template: {}: {}", describe_position(program_->source, position), message);
  }
  static std::string describe(const Token& t) {
    switch (t.kind) {
      case TokenKind::kEnd:
        return "end of template";
      case TokenKind::kBlockEnd:
        return "end of statement block";
      case TokenKind::kVariableEnd:
        return "end of print statement";
      case TokenKind::kBlockBegin:
      case TokenKind::kVariableBegin:
        return "begin of a tag";
      default:
        return "'" + t.text + "'";
    }
  }
  [[noreturn]] void unexpected(std::string_view expected) const {
    error(current().position, fmt::format("expected {}, got {}", expected, describe(current())));
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) unexpected(fmt::format("'{}'", op));
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) unexpected(fmt::format("'{}'", name));
  }
  void expect_block_end() {
    if (current().kind != TokenKind::kBlockEnd) unexpected("end of statement block");
    take();
  }
  Token expect_identifier() {
    if (current().kind != TokenKind::kName) unexpected("a name");
    return take();
  }
  int intern(const std::string& name) {
    auto [it, added] = names_.emplace(name, static_cast<int>(program_->names.size()));
    if (added) program_->names.push_back(name);
    return it->second;
  }

  struct Nesting {
    explicit Nesting(Parser& p) : parser(p) {
      if (++parser.nesting_ > kMaxNesting)
        parser.error(parser.current().position, "nested too deeply");
    }
    ~Nesting() { --parser.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    Parser& parser;
  };

  // ---- expressions
  ExprPtr make(ExprKind kind, size_t position) {
    auto e = std::make_unique<Expr>();
    e->kind = kind;
    e->position = static_cast<uint32_t>(position);
    return e;
  }
  void adopt(Expr& parent, ExprPtr child) {
    if (child != nullptr) {
      parent.depth = std::max(parent.depth, child->depth + 1);
      if (parent.depth > kMaxExprDepth)
        error(child->position, "the expression is nested too deeply");
    }
    parent.items.push_back(std::move(child));
  }
  ExprPtr unary(ExprKind kind, size_t position, ExprPtr operand) {
    ExprPtr e = make(kind, position);
    adopt(*e, std::move(operand));
    return e;
  }
  ExprPtr binary(ExprKind kind, size_t position, ExprPtr a, ExprPtr b) {
    ExprPtr e = make(kind, position);
    adopt(*e, std::move(a));
    adopt(*e, std::move(b));
    return e;
  }
  ExprPtr constant(size_t position, Value value) {
    ExprPtr e = make(ExprKind::kConst, position);
    e->value = std::move(value);
    return e;
  }

  ExprPtr parse_expression(bool with_conditional = true) {
    Nesting guard(*this);
    return with_conditional ? parse_conditional() : parse_or();
  }

  ExprPtr parse_conditional() {
    ExprPtr e = parse_or();
    while (is_name("if")) {
      size_t position = take().position;
      ExprPtr node = make(ExprKind::kConditional, position);
      adopt(*node, parse_or());
      adopt(*node, std::move(e));
      if (skip_name("else")) {
        Nesting guard(*this);
        adopt(*node, parse_conditional());
      } else {
        adopt(*node, nullptr);
      }
      e = std::move(node);
    }
    return e;
  }

  ExprPtr parse_or() {
    ExprPtr e = parse_and();
    while (is_name("or")) {
      size_t position = take().position;
      e = binary(ExprKind::kOr, position, std::move(e), parse_and());
    }
    return e;
  }
  ExprPtr parse_and() {
    ExprPtr e = parse_not();
    while (is_name("and")) {
      size_t position = take().position;
      e = binary(ExprKind::kAnd, position, std::move(e), parse_not());
    }
    return e;
  }
  ExprPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    Nesting guard(*this);
    size_t position = take().position;
    return unary(ExprKind::kNot, position, parse_not());
  }

  bool take_comparison(Op& op) {
    static const std::unordered_map<std::string_view, Op> kOps = {{"==", Op::kEq}, {"!=", Op::kNe},
                                                                  {"<", Op::kLt},  {"<=", Op::kLe},
                                                                  {">", Op::kGt},  {">=", Op::kGe}};
    if (current().kind == TokenKind::kOperator) {
      auto it = kOps.find(current().text);
      if (it == kOps.end()) return false;
      op = it->second;
      take();
      return true;
    }
    if (skip_name("in")) {
      op = Op::kIn;
      return true;
    }
    if (is_name("not") && look().kind == TokenKind::kName && look().text == "in") {
      take();
      take();
      op = Op::kNotIn;
      return true;
    }
    return false;
  }

  ExprPtr parse_compare() {
    size_t position = current().position;
    ExprPtr e = parse_sum();
    Op op;
    if (!take_comparison(op)) return e;
    ExprPtr node = make(ExprKind::kCompare, position);
    adopt(*node, std::move(e));
    do {
      node->ops.push_back(op);
      adopt(*node, parse_sum());
    } while (take_comparison(op));
    return node;
  }

  ExprPtr arithmetic(Op op, size_t position, ExprPtr a, ExprPtr b) {
    ExprPtr e = binary(ExprKind::kBinary, position, std::move(a), std::move(b));
    e->op = op;
    return e;
  }

  ExprPtr parse_sum() {
    ExprPtr e = parse_concat();
    while (is_op("+") || is_op("-")) {
      Token t = take();
      e = arithmetic(t.text == "+" ? Op::kAdd : Op::kSub, t.position, std::move(e), parse_concat());
    }
    return e;
  }
  ExprPtr parse_concat() {
    size_t position = current().position;
    ExprPtr e = parse_product();
    if (!is_op("~")) return e;
    ExprPtr node = make(ExprKind::kConcat, position);
    adopt(*node, std::move(e));
    while (skip_op("~")) adopt(*node, parse_product());
    return node;
  }
  ExprPtr parse_product() {
    ExprPtr e = parse_power();
    while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
      Token t = take();
      Op op = t.text == "*"    ? Op::kMul
              : t.text == "/"  ? Op::kDiv
              : t.text == "//" ? Op::kFloorDiv
                               : Op::kMod;
      e = arithmetic(op, t.position, std::move(e), parse_power());
    }
    return e;
  }
  ExprPtr parse_power() {
    ExprPtr e = parse_unary(true);
    while (is_op("**")) {
      size_t position = take().position;
      e = arithmetic(Op::kPow, position, std::move(e), parse_unary(true));
    }
    return e;
  }
  ExprPtr parse_unary(bool with_filter) {
    Nesting guard(*this);
    ExprPtr e;
    if (is_op("-") || is_op("+")) {
      Token t = take();
      e = unary(t.text == "-" ? ExprKind::kNegate : ExprKind::kPlus, t.position,
                parse_unary(false));
    } else {
      e = parse_primary();
    }
    e = parse_postfix(std::move(e));
    return with_filter ? parse_filters(std::move(e)) : std::move(e);
  }

  ExprPtr parse_primary() {
    size_t position = current().position;
    switch (current().kind) {
      case TokenKind::kName:
        return parse_name();
      case TokenKind::kString: {
        std::string text = take().text;
        while (current().kind == TokenKind::kString) text += take().text;
        return constant(position, Value::string(std::move(text)));
      }
      case TokenKind::kInteger:
        return constant(position, parse_integer(take()));
      case TokenKind::kFloat: {
        std::string text = take().text;
        double d = 0;
        std::from_chars(text.data(), text.data() + text.size(), d);
        return constant(position, Value::real(d));
      }
      default:
        break;
    }
    if (skip_op("(")) {
      ExprPtr e = parse_tuple(true, true);
      expect_op(")");
      return e;
    }
    if (skip_op("[")) {
      ExprPtr e = make(ExprKind::kList, position);
      while (!is_op("]")) {
        if (!e->items.empty()) expect_op(",");
        if (is_op("]")) break;
        adopt(*e, parse_expression());
      }
      expect_op("]");
      return e;
    }
    if (skip_op("{")) {
      ExprPtr e = make(ExprKind::kDict, position);
      while (!is_op("}")) {
        if (!e->items.empty()) expect_op(",");
        if (is_op("}")) break;
        adopt(*e, parse_expression());
        expect_op(":");
        adopt(*e, parse_expression());
      }
      expect_op("}");
      return e;
    }
    error(position, fmt::format("unexpected {}", describe(current())));
  }

  Value parse_integer(const Token& t) {
    int base = 10;
    std::string_view digits = t.text;
    if (digits.size() > 2 && digits[0] == '0' && digits[1] > '9') {
      base = digits[1] == 'x' ? 16 : digits[1] == 'o' ? 8 : 2;
      digits.remove_prefix(2);
    }
    uint64_t value = 0;
    auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (result.ec != std::errc()) error(t.position, "the number is too large");
    return Value::integer(static_cast<Int>(value));
  }

  ExprPtr parse_name() {
    Token t = take();
    const std::string& n = t.text;
    if (n == "true" || n == "True") return constant(t.position, Value::boolean(true));
    if (n == "false" || n == "False") return constant(t.position, Value::boolean(false));
    if (n == "none" || n == "None") return constant(t.position, Value::none());
    if (n == "varargs") uses_varargs_ = true;
    if (n == "kwargs") uses_kwargs_ = true;
    if (n == "caller") uses_caller_ = true;
    ExprPtr e = make(ExprKind::kName, t.position);
    e->name = intern(n);
    e->text = n;
    return e;
  }

  bool is_tuple_end(bool in_for) const {
    TokenKind k = current().kind;
    return k == TokenKind::kVariableEnd || k == TokenKind::kBlockEnd || is_op(")") ||
           (in_for && is_name("recursive"));
  }

  // One expression, or a tuple of them without parentheses.
  ExprPtr parse_tuple(bool with_conditional, bool explicit_parentheses, bool in_for = false) {
    size_t position = current().position;
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    for (;;) {
      if (!items.empty()) expect_op(",");
      if (is_tuple_end(in_for)) break;
      items.push_back(parse_expression(with_conditional));
      if (!is_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) {
      if (!items.empty()) return std::move(items[0]);
      if (!explicit_parentheses) unexpected("an expression");
    }
    ExprPtr e = make(ExprKind::kTuple, position);
    for (ExprPtr& item : items) adopt(*e, std::move(item));
    return e;
  }

  ExprPtr parse_postfix(ExprPtr e) {
    for (;;) {
      if (is_op(".") || is_op("[")) {
        e = parse_subscript(std::move(e));
      } else if (is_op("(")) {
        e = parse_call(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr object) {
    size_t position = current().position;
    if (skip_op(".")) {
      Token t = take();
      if (t.kind == TokenKind::kName) {
        ExprPtr e = unary(ExprKind::kAttribute, position, std::move(object));
        e->text = t.text;
        return e;
      }
      if (t.kind != TokenKind::kInteger) error(t.position, "expected name or number");
      return binary(ExprKind::kItem, position, std::move(object),
                    constant(t.position, parse_integer(t)));
    }
    expect_op("[");
    std::vector<ExprPtr> keys;
    do {
      if (!keys.empty()) expect_op(",");
      keys.push_back(parse_slice_or_index());
    } while (!is_op("]"));
    expect_op("]");
    if (keys.size() == 1) {
      if (keys[0]->kind == ExprKind::kSlice) {
        ExprPtr slice = std::move(keys[0]);
        ExprPtr e = make(ExprKind::kSlice, position);
        adopt(*e, std::move(object));
        for (ExprPtr& bound : slice->items) adopt(*e, std::move(bound));
        return e;
      }
      return binary(ExprKind::kItem, position, std::move(object), std::move(keys[0]));
    }
    ExprPtr tuple = make(ExprKind::kTuple, position);
    for (ExprPtr& key : keys) {
      if (key->kind == ExprKind::kSlice) error(position, "a slice cannot be part of a tuple");
      adopt(*tuple, std::move(key));
    }
    return binary(ExprKind::kItem, position, std::move(object), std::move(tuple));
  }

  // A slice node here has start, stop and step only.
  ExprPtr parse_slice_or_index() {
    size_t position = current().position;
    ExprPtr bounds[3];
    if (!is_op(":")) {
      bounds[0] = parse_expression();
      if (!is_op(":")) return std::move(bounds[0]);
    }
    expect_op(":");
    if (!is_op(":") && !is_op("]") && !is_op(",")) bounds[1] = parse_expression();
    if (skip_op(":") && !is_op("]") && !is_op(",")) bounds[2] = parse_expression();
    ExprPtr e = make(ExprKind::kSlice, position);
    for (ExprPtr& bound : bounds) adopt(*e, std::move(bound));
    return e;
  }

  void parse_arguments(Expr& call) {
    expect_op("(");
    bool first = true;
    while (!is_op(")")) {
      if (!first) expect_op(",");
      first = false;
      if (is_op(")")) break;
      size_t position = current().position;
      if (skip_op("*")) {
        if (call.star != nullptr || call.star_star != nullptr)
          error(position, "invalid call: repeated *");
        call.star = parse_expression();
        grow(call, *call.star);
      } else if (skip_op("**")) {
        if (call.star_star != nullptr) error(position, "invalid call: repeated **");
        call.star_star = parse_expression();
        grow(call, *call.star_star);
      } else if (current().kind == TokenKind::kName && look().kind == TokenKind::kOperator &&
                 look().text == "=") {
        std::string name = take().text;
        take();
        ExprPtr value = parse_expression();
        grow(call, *value);
        call.named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call.named.empty() || call.star != nullptr || call.star_star != nullptr) {
          error(position, "a positional argument follows a keyword argument");
        }
        adopt(call, parse_expression());
      }
    }
    expect_op(")");
  }
  void grow(Expr& parent, const Expr& child) {
    parent.depth = std::max(parent.depth, child.depth + 1);
    if (parent.depth > kMaxExprDepth) error(child.position, "the expression is nested too deeply");
  }

  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr e = make(ExprKind::kCall, current().position);
    adopt(*e, std::move(callee));
    parse_arguments(*e);
    return e;
  }

  ExprPtr parse_filters(ExprPtr e) {
    for (;;) {
      if (is_op("|")) {
        e = parse_filter(std::move(e));
      } else if (is_name("is")) {
        e = parse_test(std::move(e));
      } else if (is_op("(")) {
        e = parse_call(std::move(e));
      } else {
        return e;
      }
    }
  }

  std::string parse_dotted_name() {
    std::string name = expect_identifier().text;
    while (is_op(".")) {
      take();
      name += '.' + expect_identifier().text;
    }
    return name;
  }

  // `e` null: the input of a filter block.
  ExprPtr parse_filter(ExprPtr e, bool without_pipe = false) {
    size_t position = current().position;
    if (!without_pipe) expect_op("|");
    ExprPtr node = make(ExprKind::kFilter, position);
    adopt(*node, std::move(e));
    node->text = parse_dotted_name();
    node->filter = find_filter(node->text);
    if (is_op("(")) parse_arguments(*node);
    return node;
  }

  ExprPtr parse_test(ExprPtr e) {
    size_t position = current().position;
    expect_name("is");
    bool negated = skip_name("not");
    ExprPtr node = make(ExprKind::kTest, position);
    adopt(*node, std::move(e));
    node->text = parse_dotted_name();
    node->test = find_test(node->text);
    const Token& t = current();
    bool starts_value = t.kind == TokenKind::kName || t.kind == TokenKind::kString ||
                        t.kind == TokenKind::kInteger || t.kind == TokenKind::kFloat ||
                        is_op("[") || is_op("{");
    if (is_op("(")) {
      parse_arguments(*node);
    } else if (starts_value && !is_name("else") && !is_name("or") && !is_name("and")) {
      if (is_name("is")) error(t.position, "you cannot chain multiple tests with is");
      Nesting guard(*this);
      adopt(*node, parse_postfix(parse_primary()));
    }
    if (!negated) return node;
    return unary(ExprKind::kNot, position, std::move(node));
  }

  // ---- statements
  std::unique_ptr<Stmt> statement(StmtKind kind, size_t position) {
    auto s = std::make_unique<Stmt>();
    s->kind = kind;
    s->position = static_cast<uint32_t>(position);
    return s;
  }

  // Statements up to a tag whose name is in `ends` (left as the current token, after its
  // BlockBegin).
  Body parse_body(const std::vector<std::string_view>& ends, std::string_view opener) {
    Nesting guard(*this);
    size_t opened = current().position;
    Body body;
    for (;;) {
      switch (current().kind) {
        case TokenKind::kEnd:
          if (!ends.empty()) {
            error(opened,
                  fmt::format("the '{}' block is not closed: expected '{}'", opener, ends.back()));
          }
          return body;
        case TokenKind::kText: {
          auto s = statement(StmtKind::kText, current().position);
          s->text = take().text;
          body.push_back(std::move(s));
          break;
        }
        case TokenKind::kVariableBegin: {
          auto s = statement(StmtKind::kOutput, take().position);
          s->exprs.push_back(parse_tuple(true, false));
          if (current().kind != TokenKind::kVariableEnd) unexpected("end of print statement");
          take();
          body.push_back(std::move(s));
          break;
        }
        case TokenKind::kBlockBegin: {
          take();
          if (current().kind != TokenKind::kName) unexpected("a tag name");
          if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return body;
          if (auto s = parse_statement()) body.push_back(std::move(s));
          break;
        }
        default:
          unexpected("text or a tag");
      }
    }
  }
  // A body closed by {% end %}; the closing tag is consumed.
  Body parse_block(std::string_view end, std::string_view opener) {
    expect_block_end();
    Body body = parse_body({end}, opener);
    take();
    return body;
  }

  std::unique_ptr<Stmt> parse_statement() {
    Token tag = take();
    const std::string& name = tag.text;
    if (name == "for") return parse_for(tag.position);
    if (name == "if") return parse_if(tag.position);
    if (name == "set") return parse_set(tag.position);
    if (name == "macro") return parse_macro(tag.position);
    if (name == "call") return parse_call_block(tag.position);
    if (name == "filter") return parse_filter_block(tag.position);
    if (name == "with") return parse_with(tag.position);
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) error(tag.position, fmt::format("'{}' outside of a loop", name));
      expect_block_end();
      return statement(name == "break" ? StmtKind::kBreak : StmtKind::kContinue, tag.position);
    }
    if (name == "generation" || name == "block") {
      auto s = statement(name == "block" ? StmtKind::kScope : StmtKind::kGeneration, tag.position);
      if (name == "block") expect_identifier();
      if (name == "generation") program_->has_generation = true;
      int loops = std::exchange(loop_depth_, 0);
      s->bodies.push_back(parse_block("end" + name, name));
      loop_depth_ = loops;
      if (name == "block" && current().kind == TokenKind::kName) take();
      expect_block_end();
      return s;
    }
    if (name == "include" || name == "import" || name == "from" || name == "extends") {
      error(tag.position,
            fmt::format("'{}' is not possible in a chat template: there are no other templates",
                        name));
    }
    error(tag.position, fmt::format("unknown tag '{}'", name));
  }

  Target parse_target(bool with_namespace, bool with_tuple) {
    Target target;
    if (skip_op("(")) {
      Nesting guard(*this);
      target = parse_target(false, true);
      expect_op(")");
    } else {
      target = parse_single_target(with_namespace);
    }
    if (!with_tuple || !is_op(",")) return target;
    Target tuple;
    tuple.parts.push_back(std::move(target));
    while (skip_op(",")) {
      if (current().kind == TokenKind::kName && !is_name("in")) {
        tuple.parts.push_back(parse_single_target(false));
      } else if (is_op("(")) {
        Nesting guard(*this);
        tuple.parts.push_back(parse_target(false, false));
      }
    }
    return tuple;
  }
  Target parse_single_target(bool with_namespace) {
    Token t = expect_identifier();
    static const std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None"};
    if (std::find(std::begin(kReserved), std::end(kReserved), t.text) != std::end(kReserved)) {
      error(t.position, fmt::format("cannot assign to '{}'", t.text));
    }
    Target target;
    target.name = intern(t.text);
    target.text = t.text;
    if (with_namespace && skip_op(".")) target.attribute = expect_identifier().text;
    return target;
  }

  // Does the expression read a message's content (or a variable that holds it)?
  bool reads_content(const Expr& e) const {
    switch (e.kind) {
      case ExprKind::kAttribute:
        return e.text == "content";
      case ExprKind::kItem:
        return e.items[1]->kind == ExprKind::kConst && e.items[1]->value.is_string() &&
               e.items[1]->value.str() == "content";
      case ExprKind::kName:
        return std::find(content_names_.begin(), content_names_.end(), e.name) !=
               content_names_.end();
      case ExprKind::kFilter:
      case ExprKind::kSlice:
        return e.items[0] != nullptr && reads_content(*e.items[0]);
      case ExprKind::kConditional:
        return reads_content(*e.items[1]) || (e.items[2] != nullptr && reads_content(*e.items[2]));
      default:
        return false;
    }
  }

  std::unique_ptr<Stmt> parse_for(size_t position) {
    auto s = statement(StmtKind::kFor, position);
    s->targets.push_back(parse_target(false, true));
    expect_name("in");
    s->exprs.push_back(parse_tuple(false, false, true));
    if (reads_content(*s->exprs[0])) program_->loops_over_content = true;
    s->exprs.push_back(skip_name("if") ? parse_expression() : nullptr);
    s->recursive = skip_name("recursive");
    expect_block_end();
    ++loop_depth_;
    s->bodies.push_back(parse_body({"endfor", "else"}, "for"));
    --loop_depth_;
    if (take().text == "else") {
      s->bodies.push_back(parse_block("endfor", "for"));
    }
    expect_block_end();
    return s;
  }

  std::unique_ptr<Stmt> parse_if(size_t position) {
    auto s = statement(StmtKind::kIf, position);
    for (;;) {
      s->exprs.push_back(parse_tuple(false, false));
      expect_block_end();
      s->bodies.push_back(parse_body({"elif", "else", "endif"}, "if"));
      std::string tag = take().text;
      if (tag == "elif") continue;
      if (tag == "else") s->bodies.push_back(parse_block("endif", "if"));
      expect_block_end();
      return s;
    }
  }

  std::unique_ptr<Stmt> parse_set(size_t position) {
    auto s = statement(StmtKind::kSet, position);
    s->targets.push_back(parse_target(true, true));
    if (skip_op("=")) {
      s->exprs.push_back(parse_tuple(true, false));
      const Target& target = s->targets[0];
      if (target.parts.empty() && target.attribute.empty() && reads_content(*s->exprs[0])) {
        content_names_.push_back(target.name);
      }
      expect_block_end();
      return s;
    }
    s->kind = StmtKind::kSetBlock;
    ExprPtr filters;
    while (is_op("|")) filters = parse_filter(std::move(filters));
    s->exprs.push_back(std::move(filters));
    int loops = std::exchange(loop_depth_, 0);
    s->bodies.push_back(parse_block("endset", "set"));
    loop_depth_ = loops;
    expect_block_end();
    return s;
  }

  void parse_parameters(Stmt& s) {
    if (!skip_op("(")) return;
    bool first = true;
    while (!is_op(")")) {
      if (!first) expect_op(",");
      first = false;
      Token t = expect_identifier();
      int name = intern(t.text);
      if (t.text == "content") content_names_.push_back(name);
      s.parameters.push_back(name);
      s.parameter_names.push_back(t.text);
      if (skip_op("=")) {
        s.exprs.push_back(parse_expression());
      } else {
        if (!s.exprs.empty())
          error(t.position, "a parameter without a default follows one with a default");
      }
    }
    expect_op(")");
  }

  // The body of a macro or call block, noting which of its special variables it reads.
  void parse_callable_body(Stmt& s, std::string_view end, std::string_view opener) {
    bool varargs = std::exchange(uses_varargs_, false);
    bool kwargs = std::exchange(uses_kwargs_, false);
    bool caller = std::exchange(uses_caller_, false);
    int loops = std::exchange(loop_depth_, 0);
    s.bodies.push_back(parse_block(end, opener));
    loop_depth_ = loops;
    s.uses_varargs = std::exchange(uses_varargs_, varargs);
    s.uses_kwargs = std::exchange(uses_kwargs_, kwargs);
    s.uses_caller = std::exchange(uses_caller_, caller);
    expect_block_end();
  }

  std::unique_ptr<Stmt> parse_macro(size_t position) {
    auto s = statement(StmtKind::kMacro, position);
    s->text = expect_identifier().text;
    s->name = intern(s->text);
    if (!is_op("(")) unexpected("'('");
    parse_parameters(*s);
    parse_callable_body(*s, "endmacro", "macro");
    return s;
  }

  std::unique_ptr<Stmt> parse_call_block(size_t position) {
    auto s = statement(StmtKind::kCallBlock, position);
    s->text = "caller";
    parse_parameters(*s);
    ExprPtr call = parse_expression();
    if (call->kind != ExprKind::kCall) error(position, "expected a call");
    // Defaults come first in `exprs`, the call last.
    s->exprs.push_back(std::move(call));
    parse_callable_body(*s, "endcall", "call");
    return s;
  }

  std::unique_ptr<Stmt> parse_filter_block(size_t position) {
    auto s = statement(StmtKind::kFilterBlock, position);
    ExprPtr filters = parse_filter(nullptr, true);
    while (is_op("|")) filters = parse_filter(std::move(filters));
    s->exprs.push_back(std::move(filters));
    int loops = std::exchange(loop_depth_, 0);
    s->bodies.push_back(parse_block("endfilter", "filter"));
    loop_depth_ = loops;
    expect_block_end();
    return s;
  }

  std::unique_ptr<Stmt> parse_with(size_t position) {
    auto s = statement(StmtKind::kWith, position);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!s->targets.empty()) expect_op(",");
      s->targets.push_back(parse_target(false, false));
      expect_op("=");
      s->exprs.push_back(parse_expression());
    }
    s->bodies.push_back(parse_block("endwith", "with"));
    expect_block_end();
    return s;
  }

  std::shared_ptr<Program> program_;
  std::vector<Token> tokens_;
  size_t index_ = 0;
  int nesting_ = 0;
  int loop_depth_ = 0;
  bool uses_varargs_ = false, uses_kwargs_ = false, uses_caller_ = false;
  std::unordered_map<std::string, int> names_;
  std::vector<int> content_names_;
};

}  // namespace

std::shared_ptr<const Program> parse_template(std::string_view source) {
  BudgetScope no_budget(nullptr);
  return Parser(source).run();
}

}  // namespace reft::jinja
