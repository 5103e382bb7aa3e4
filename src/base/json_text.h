// Strings as JSON text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reft {

// Appends the quoted, escaped string as Python's json.dumps writes it; with `ensure_ascii`, all
// beyond ASCII as \uXXXX. Invalid UTF-8 becomes U+FFFD.
void append_json_string(std::string& out, std::string_view text, bool ensure_ascii = false);
// Invalid and incomplete sequences become U+FFFD, as Python's errors="replace".
std::string to_valid_utf8(std::string_view bytes);
// Of valid UTF-8.
int64_t count_code_points(std::string_view text);

}  // namespace reft
