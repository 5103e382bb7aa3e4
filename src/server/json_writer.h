// JSON text without a tree: answers are written straight into a string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reft {

// Appends the quoted, escaped string. Invalid UTF-8 becomes U+FFFD.
void append_json_string(std::string& out, std::string_view text);
void append_json_int(std::string& out, int64_t value);
// The shortest digits that read back to the same float. Infinities and NaN, which JSON lacks,
// become ±9999 and null.
void append_json_float(std::string& out, float value);
void append_json_double(std::string& out, double value);
// Invalid and incomplete sequences become U+FFFD, as Python's errors="replace".
std::string to_valid_utf8(std::string_view bytes);

}  // namespace reft
