#include "server/json_writer.h"

#include <charconv>
#include <cmath>

namespace reft {
namespace {

template <class T>
void append_shortest(std::string& out, T value) {
  if (!std::isfinite(value)) {
    out += std::isnan(value) ? "null" : (value > 0 ? "9999.0" : "-9999.0");
    return;
  }
  char digits[40];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  const std::string_view text(digits, static_cast<size_t>(end - digits));
  out += text;
  // Typed clients read "1" as an integer.
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

}  // namespace

void append_json_int(std::string& out, int64_t value) {
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  out.append(digits, static_cast<size_t>(end - digits));
}

void append_json_float(std::string& out, float value) { append_shortest(out, value); }
void append_json_double(std::string& out, double value) { append_shortest(out, value); }

}  // namespace reft
