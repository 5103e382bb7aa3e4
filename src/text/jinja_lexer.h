// Splits a template into text and tokens, with Jinja's white-space control (trim_blocks and
// lstrip_blocks on, as transformers sets them).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace reft::jinja {

enum class TokenKind : uint8_t {
  kText,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;  // strings: unescaped; numbers: without underscores
  size_t position;   // byte offset in the (newline-normalised) source
};

// "\r\n" and "\r" become "\n", and one newline at the end goes.
std::string normalize_source(std::string_view source);
// `source` is normalised. Throws Error with line and column.
std::vector<Token> tokenize(std::string_view source);
// "line 3, column 7"
std::string describe_position(std::string_view source, size_t position);

}  // namespace reft::jinja
