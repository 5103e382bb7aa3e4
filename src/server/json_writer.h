// JSON text without a tree: answers are written straight into a string.
#pragma once

#include <cstdint>
#include <string>

#include "base/json_text.h"

namespace reft {

void append_json_int(std::string& out, int64_t value);
// The shortest digits that read back to the same float. Infinities and NaN, which JSON lacks,
// become ±9999 and null.
void append_json_float(std::string& out, float value);
void append_json_double(std::string& out, double value);

}  // namespace reft
