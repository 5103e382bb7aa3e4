// The compiled form of a template: a tree that the interpreter walks. Immutable once parsed.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace reft::jinja {

using FilterFunction = Value (*)(Interpreter&, const Value& input, CallArgs& args);
using TestFunction = bool (*)(Interpreter&, const Value& input, CallArgs& args);

enum class ExprKind : uint8_t {
  kConst,
  kName,
  kList,
  kTuple,
  kDict,  // keys and values alternate in `items`
  kNegate,
  kPlus,
  kNot,
  kAnd,
  kOr,
  kBinary,
  kCompare,  // items[0] ops[0] items[1] ops[1] …
  kConcat,
  kConditional,  // condition, then, else (may be null)
  kAttribute,
  kItem,
  kSlice,  // object, start, stop, step (each may be null)
  kCall,
  kFilter,  // items[0] is null in a filter block
  kTest
};

enum class Op : uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kFloorDiv,
  kMod,
  kPow,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kIn,
  kNotIn
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind;
  uint32_t position = 0;  // in the source, for errors
  int depth = 1;
  int name = -1;     // interned, of kName
  std::string text;  // attribute, filter or test name
  Value value;       // kConst
  Op op = Op::kAdd;  // kBinary
  std::vector<Op> ops;
  std::vector<ExprPtr> items;
  std::vector<std::pair<std::string, ExprPtr>> named;  // call arguments
  ExprPtr star, star_star;
  FilterFunction filter = nullptr;
  TestFunction test = nullptr;
};

enum class StmtKind : uint8_t {
  kText,
  kOutput,
  kFor,
  kIf,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kWith,
  kScope,       // a body with variables of its own: block
  kGeneration,  // the same, and what it prints was written by the assistant
  kBreak,
  kContinue
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

// What a `for`, `set` or `with` assigns to: a name, a namespace attribute, or a tuple of these.
struct Target {
  int name = -1;
  std::string text;       // of the name, for errors
  std::string attribute;  // `set ns.attribute`
  std::vector<Target> parts;
};

struct Stmt {
  StmtKind kind;
  uint32_t position = 0;
  std::string text;  // literal text; macro name
  int name = -1;     // of a macro
  std::vector<ExprPtr>
      exprs;  // printed; iterable and filter; conditions; values; default values of parameters
  std::vector<Target> targets;
  std::vector<int> parameters;
  std::vector<std::string> parameter_names;
  std::vector<Body> bodies;  // for: body, else; if: one per condition, then else
  bool recursive = false;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

struct Program {
  std::string source;
  std::vector<std::string> names;
  Body body;
  bool loops_over_content = false;  // content parts, as opposed to text only
  bool has_generation = false;      // a generation block
};

}  // namespace reft::jinja
