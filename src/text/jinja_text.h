// Python's str operations on UTF-8 text; positions and lengths count code points.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace reft::jinja {

bool is_ascii(std::string_view s);
size_t codepoint_count(std::string_view s);
// Byte offset of code point `index`, or the size when there are fewer.
size_t byte_offset(std::string_view s, size_t index);
// Decodes the code point at `pos` and moves on; a broken byte is returned as U+FFFD.
char32_t next_codepoint(std::string_view s, size_t& pos);
std::u32string decode_utf8(std::string_view s);
void append_utf8(std::string& out, char32_t c);

bool is_space(char32_t c);      // str.isspace
bool is_printable(char32_t c);  // str.isprintable
bool is_alpha(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);

std::string to_upper(std::string_view s);
std::string to_lower(std::string_view s);
std::string to_capitalized(std::string_view s);
std::string to_title(std::string_view s);
std::string swap_case(std::string_view s);

// `chars` empty with `whitespace` set: strips Unicode white space.
std::string_view strip(std::string_view s, bool left, bool right);
std::string_view strip_chars(std::string_view s, std::string_view chars, bool left, bool right);
std::vector<std::string_view> split_whitespace(std::string_view s, int64_t max_splits);
std::vector<std::string_view> rsplit_whitespace(std::string_view s, int64_t max_splits);
std::vector<std::string_view> split(std::string_view s, std::string_view separator,
                                    int64_t max_splits);
std::vector<std::string_view> rsplit(std::string_view s, std::string_view separator,
                                     int64_t max_splits);
std::vector<std::string_view> split_lines(std::string_view s, bool keep_ends);
// str.replace; max < 0 means all.
std::string replace(std::string_view s, std::string_view from, std::string_view to, int64_t max);
// HTML escape as MarkupSafe's.
std::string escape_html(std::string_view s);

}  // namespace reft::jinja
