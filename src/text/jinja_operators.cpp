// Arithmetic and slices, with Python's semantics.
#include <algorithm>
#include <cmath>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace reft::jinja {
namespace {

Int checked_int(bool overflow, Int value) {
  check(!overflow, "chat template: an integer is too large");
  return value;
}

Int floor_div(Int a, Int b) {
  Int q = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? q - 1 : q;
}

Int int_pow(Int base, Int exponent) {
  Int result = 1;
  check(exponent < 4096, "chat template: an integer is too large");
  for (Int i = 0; i < exponent; ++i) {
    Int next = 0;
    bool overflow = __builtin_mul_overflow(result, base, &next);
    result = checked_int(overflow, next);
  }
  return result;
}

Value repeat(const Value& v, Int times) {
  if (times < 0) times = 0;
  if (v.is_string()) {
    check(times == 0 || v.str().size() <= static_cast<size_t>(INT64_MAX) /
                                              static_cast<size_t>(std::min<Int>(times, INT64_MAX)),
          "chat template: a string is repeated too often");
    check_string_size(v.str().size() * static_cast<size_t>(times));
    std::string out;
    if (v.str().empty()) return Value::string(out);
    for (Int i = 0; i < times; ++i) out += v.str();
    return Value::string(std::move(out), v.is_markup());
  }
  size_t size = v.items().size();
  Budget* budget = current_budget();
  check(size == 0 || budget == nullptr || times <= static_cast<Int>(budget->max_items / size),
        "chat template: a list is repeated too often");
  std::vector<Value> out;
  if (size > 0) {
    for (Int i = 0; i < times; ++i) out.insert(out.end(), v.items().begin(), v.items().end());
  }
  return Value::list(std::move(out), v.list_kind());
}

bool is_sequence(const Value& v) { return v.is_list() && v.list_kind() <= ListKind::kGroup; }

[[noreturn]] void fail_operands(std::string_view op, const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  fail("chat template: unsupported operand type(s) for {}: '{}' and '{}'", op, type_name(a),
       type_name(b));
}

Value integer_arithmetic(Op op, Int a, Int b) {
  Int out = 0;
  switch (op) {
    case Op::kAdd: {
      bool overflow = __builtin_add_overflow(a, b, &out);
      return Value::integer(checked_int(overflow, out));
    }
    case Op::kSub: {
      bool overflow = __builtin_sub_overflow(a, b, &out);
      return Value::integer(checked_int(overflow, out));
    }
    case Op::kMul: {
      bool overflow = __builtin_mul_overflow(a, b, &out);
      return Value::integer(checked_int(overflow, out));
    }
    case Op::kPow:
      if (b < 0) return Value::real(std::pow(static_cast<double>(a), static_cast<double>(b)));
      if (a == 0 || a == 1) return Value::integer(b == 0 ? 1 : a);
      if (a == -1) return Value::integer(b % 2 == 0 ? 1 : -1);
      return Value::integer(int_pow(a, b));
    default:
      break;
  }
  check(b != 0, "chat template: division by zero");
  if (op == Op::kDiv) return Value::real(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1) return op == Op::kMod ? Value::integer(0) : integer_arithmetic(Op::kSub, 0, a);
  return Value::integer(op == Op::kFloorDiv ? floor_div(a, b) : a - floor_div(a, b) * b);
}

Value float_arithmetic(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd:
      return Value::real(a + b);
    case Op::kSub:
      return Value::real(a - b);
    case Op::kMul:
      return Value::real(a * b);
    case Op::kPow:
      return Value::real(std::pow(a, b));
    default:
      break;
  }
  check(b != 0, "chat template: division by zero");
  if (op == Op::kDiv) return Value::real(a / b);
  if (op == Op::kFloorDiv) return Value::real(std::floor(a / b));
  double m = std::fmod(a, b);
  if (m != 0 && (m < 0) != (b < 0)) m += b;
  return Value::real(m);
}

Value add(const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    check_string_size(a.str().size() + b.str().size());
    bool markup = a.is_markup() || b.is_markup();
    std::string left = markup && !a.is_markup() ? escape_html(a.str()) : a.str();
    return Value::string(left + (markup && !b.is_markup() ? escape_html(b.str()) : b.str()),
                         markup);
  }
  if (is_sequence(a) && is_sequence(b) &&
      (a.list_kind() == ListKind::kList) == (b.list_kind() == ListKind::kList)) {
    std::vector<Value> out = a.items();
    out.insert(out.end(), b.items().begin(), b.items().end());
    return Value::list(std::move(out), a.list_kind());
  }
  fail_operands("+", a, b);
}

constexpr std::string_view kOpNames[] = {"+", "-", "*", "/", "//", "%", "**"};

}  // namespace

Value Interpreter::eval_slice(const Expr& e) {
  Value object = eval(*e.items[0]);
  if (object.is_undefined()) fail_undefined(object);
  bool is_list =
      object.is_list() && (is_sequence(object) || object.list_kind() == ListKind::kRange);
  check(object.is_string() || is_list, "chat template: '{}' object cannot be sliced",
        type_name(object));
  std::u32string chars;
  bool ascii = object.is_string() && is_ascii(object.str());
  if (object.is_string() && !ascii) chars = decode_utf8(object.str());
  auto size = static_cast<Int>(is_list ? object.items().size()
                               : ascii ? object.str().size()
                                       : chars.size());
  auto bound = [&](size_t i, bool& given) -> Int {
    given = false;
    if (e.items[i] == nullptr) return 0;
    Value v = eval(*e.items[i]);
    if (v.is_none()) return 0;
    if (v.is_undefined()) fail_undefined(v);
    check(v.is_integral(), "chat template: slice indices must be integers or None");
    given = true;
    return v.as_int();
  };
  bool has_start, has_stop, has_step;
  Int start = bound(1, has_start);
  Int stop = bound(2, has_stop);
  Int step = bound(3, has_step);
  if (!has_step) step = 1;
  check(step != 0, "chat template: slice step cannot be zero");
  Int low = step > 0 ? 0 : -1;
  Int high = step > 0 ? size : size - 1;
  auto clamp = [&](Int i) { return i < 0 ? std::max(i + size, low) : std::min(i, high); };
  start = has_start ? clamp(start) : step > 0 ? low : high;
  stop = has_stop ? clamp(stop) : step > 0 ? high : low;
  if (object.is_string() && ascii && step == 1) {
    return Value::string(start < stop ? object.str().substr(static_cast<size_t>(start),
                                                            static_cast<size_t>(stop - start))
                                      : "",
                         object.is_markup());
  }
  std::vector<Value> items;
  std::string text;
  for (Int i = start; step > 0 ? i < stop : i > stop; i += step) {
    auto k = static_cast<size_t>(i);
    if (is_list) {
      items.push_back(object.items()[k]);
    } else if (ascii) {
      text += object.str()[k];
    } else {
      append_utf8(text, chars[k]);
    }
    if (step > size || -step > size) break;
  }
  budget_.tick(static_cast<int64_t>((text.size() + items.size()) / 16));
  if (!is_list) return Value::string(std::move(text), object.is_markup());
  return Value::list(std::move(items),
                     object.list_kind() == ListKind::kRange ? ListKind::kList : object.list_kind());
}

Value Interpreter::binary(Op op, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return integer_arithmetic(op, a.as_int(), b.as_int());
    return float_arithmetic(op, a.number(), b.number());
  }
  switch (op) {
    case Op::kAdd:
      return add(a, b);
    case Op::kMul:
      if ((a.is_string() || is_sequence(a)) && b.is_integral()) return repeat(a, b.as_int());
      if ((b.is_string() || is_sequence(b)) && a.is_integral()) return repeat(b, a.as_int());
      break;
    case Op::kMod:
      if (a.is_string()) {
        bool tuple =
            b.is_list() && (b.list_kind() == ListKind::kTuple || b.list_kind() == ListKind::kGroup);
        return Value::string(percent_format(a.str(), tuple ? b.items() : std::vector<Value>{b},
                                            b.is_dict() ? &b : nullptr));
      }
      break;
    default:
      break;
  }
  fail_operands(kOpNames[static_cast<size_t>(op)], a, b);
}

}  // namespace reft::jinja
